"""`python -m tasks.classification`."""

from mmattn.tasks.classification import TASK
from mmattn.tasks.common.dispatch import main

if __name__ == "__main__":
    main(TASK)
