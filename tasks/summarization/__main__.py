"""`python -m tasks.summarization`."""

from tasks.common.dispatch import Argument, main

TITLE = "Summarization: train on documents with summaries, measure, summarize, see where each word came from."
INPUTS = (
    Argument("--text", "a document to summarize"),
    Argument("--num_beams", "beams of the search; 1: greedy (default: 4)", {"type": int, "default": 4}),
    Argument("--length_penalty", "above 1 favours long ones (default: 1.0)", {"type": float, "default": 1.0}),
)

if __name__ == "__main__":
    main("summarization", TITLE, INPUTS)
