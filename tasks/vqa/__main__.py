"""`python -m tasks.vqa`."""

from mmattn.tasks.common.dispatch import main
from mmattn.tasks.vqa import TASK

if __name__ == "__main__":
    main(TASK)
