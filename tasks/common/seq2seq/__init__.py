"""What tasks that read one text and write another share."""

from mmattn.tasks.common.task import Option

SEARCH = (  # what their `predict` and `explain` take
    Option("num_beams", "beams of the search; 1: greedy (default: the model's own, or 5)", int),
    Option("length_penalty", "above 1 favours long ones (default: the model's own, or 1.0)", float),
    Option(
        "mbr",
        "take the beam that agrees most with all beams, not the likeliest (default: as the model was measured)",
        bool,
    ),
)
