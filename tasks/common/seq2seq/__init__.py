"""Shared parts of tasks that generate text."""

from mmattn.tasks.common.task import Option

SEARCH = (  # options of their `predict` and `explain`
    Option("num_beams", "number of beams; 1: greedy search (default: the value saved with the model, or 5)", int),
    Option(
        "length_penalty",
        "exponent of the length normalization; larger values favor longer texts (default: as saved, or 1.0)",
        float,
    ),
    Option(
        "mbr",
        "minimum Bayes risk decoding over the beams (default: as saved with the model)",
        bool,
    ),
    Option("beginning", "words with which each text begins"),
    Option("no_repeat_ngram_size", "no sequence of this many tokens occurs twice in a text (default: no limit)", int),
)
