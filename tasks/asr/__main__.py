"""`python -m tasks.asr`."""

from mmattn.tasks.asr import TASK
from mmattn.tasks.common.dispatch import main

if __name__ == "__main__":
    main(TASK)
