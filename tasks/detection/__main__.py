"""`python -m tasks.detection`."""

from mmattn.tasks.common.dispatch import main
from mmattn.tasks.detection import TASK

if __name__ == "__main__":
    main(TASK)
