"""`python -m tasks.summarization`."""

from tasks.common.dispatch import Argument, main

TITLE = "Summarization: train on documents with summaries, measure, summarize, see where each word came from."
INPUTS = (
    Argument("--text", "a document to summarize"),
    Argument("--num_beams", "beams of the search; 1: greedy (default: the model's own, or 5)", {"type": int}),
    Argument("--length_penalty", "above 1 favours long ones (default: the model's own, or 1.0)", {"type": float}),
    Argument(
        "--consensus",
        "take the beam that agrees most with all beams, not the likeliest (default: as the model was measured)",
        {"action": "store_true", "default": None},
    ),
    Argument("--prefix", "what T5 reads before each document (default: the one in its config.json)"),
)

if __name__ == "__main__":
    main("summarization", TITLE, INPUTS)
