"""`python -m tasks.summarization`."""

from mmattn.tasks.common.dispatch import main
from mmattn.tasks.summarization import TASK

if __name__ == "__main__":
    main(TASK)
