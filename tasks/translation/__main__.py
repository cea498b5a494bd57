"""`python -m tasks.translation`."""

from tasks.common.dispatch import Argument, main

TITLE = "Translation: train on parallel text, measure, translate, see what each word was read off."
INPUTS = (
    Argument("--text", "a sentence to translate"),
    Argument("--num_beams", "beams of the search; 1: greedy (default: 5)", {"type": int, "default": 5}),
    Argument("--length_penalty", "above 1 favours long ones (default: 1.0)", {"type": float, "default": 1.0}),
)

if __name__ == "__main__":
    main("translation", TITLE, INPUTS)
