"""`python -m tasks.text_classification`."""

from mmattn.tasks.common.dispatch import main
from mmattn.tasks.text_classification import TASK

if __name__ == "__main__":
    main(TASK)
