"""`python -m tasks.qa`."""

from mmattn.tasks.common.dispatch import main
from mmattn.tasks.qa import TASK

if __name__ == "__main__":
    main(TASK)
