"""`python -m tasks.translation`."""

from mmattn.tasks.common.dispatch import main
from mmattn.tasks.translation import TASK

if __name__ == "__main__":
    main(TASK)
