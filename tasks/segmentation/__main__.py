"""`python -m tasks.segmentation`."""

from mmattn.tasks.common.dispatch import main
from mmattn.tasks.segmentation import TASK

if __name__ == "__main__":
    main(TASK)
