"""Shared parts of text-to-text tasks."""

from mmattn.tasks.common.task import Option

SEARCH = (  # options of their `predict` and `explain`
    Option("num_beams", "number of beams; 1: greedy (default: the model's own, or 5)", int),
    Option("length_penalty", "values above 1 favour long texts (default: the model's own, or 1.0)", float),
    Option(
        "mbr",
        "return the beam of minimum Bayes risk, not the most probable one (default: as the model was measured)",
        bool,
    ),
)
