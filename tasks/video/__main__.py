"""`python -m tasks.video`."""

from mmattn.tasks.common.dispatch import main
from mmattn.tasks.video import TASK

if __name__ == "__main__":
    main(TASK)
