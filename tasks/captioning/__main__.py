"""`python -m tasks.captioning`."""

from mmattn.tasks.captioning import TASK
from mmattn.tasks.common.dispatch import main

if __name__ == "__main__":
    main(TASK)
