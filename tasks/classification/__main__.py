"""`python -m tasks.classification`."""

from tasks.common.dispatch import Argument, main

TITLE = "Image classification: train, measure, ask a model what a picture shows, see where it looked."
INPUTS = (
    Argument("--image", "a picture; or a folder's pictures by --input DIR"),
    Argument("--top_k", "how many classes to give, best first (default: 1)", {"type": int, "default": 1}),
)

if __name__ == "__main__":
    main("classification", TITLE, INPUTS)
