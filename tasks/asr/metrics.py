"""Word and character error rates over a corpus, by jiwer, of normalised texts."""

from __future__ import annotations

from collections.abc import Sequence

from mmattn.tasks.asr.processor import normalise


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Edits among all reference words, and among all reference characters, blanks included: 0 is perfect.

    Both texts go through `data.asr.normalise` first. The sums are over the corpus: a reference without words adds no
    words, and whatever was heard in it counts as insertions. Where all references are empty, the rate is 0 if nothing
    was heard, and 1 if something was.

    Args:
        hypotheses: one text a clip.
        references: the right text of each, in a list of one.

    >>> score(["seven too"], [["Seven, two!"]])
    {'wer': 0.5, 'cer': 0.1111111111111111}
    """
    import jiwer

    heard = [normalise(text) for text in hypotheses]
    said = [normalise(given[0]) for given in references]
    return {"wer": float(jiwer.process_words(said, heard).wer), "cer": float(jiwer.process_characters(said, heard).cer)}


def notes() -> dict[str, str]:
    """What a reader must know to compare: who counted, and what texts are reduced to first."""
    from importlib.metadata import version

    return {"normaliser": (normalise.__doc__ or "").split("\n")[0], "wer_by": f"jiwer {version('jiwer')}"}
