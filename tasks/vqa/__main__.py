"""`python -m tasks.vqa`."""

from tasks.common.dispatch import Argument, main

TITLE = "Visual question answering: train, measure, ask a model about a picture, see where it looked."
INPUTS = (
    Argument("--image", "a picture; or a folder's pictures by --input DIR"),
    Argument("--question", "the question about it"),
    Argument("--top_k", "how many answers to give, best first (default: 1)", {"type": int, "default": 1}),
)

if __name__ == "__main__":
    main("vqa", TITLE, INPUTS)
