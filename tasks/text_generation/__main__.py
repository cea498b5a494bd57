"""`python -m tasks.text_generation`."""

from mmattn.tasks.common.dispatch import main
from mmattn.tasks.text_generation import TASK

if __name__ == "__main__":
    main(TASK)
