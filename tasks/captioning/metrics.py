"""BLEU, ROUGE-L and CIDEr-D of captions, as the evaluation of COCO captions defines them (Chen et al. 2015)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from mmattn.data.text.scripts import is_latin, split_words

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0  # of CIDEr-D's penalty of another length
BETA = 1.2  # of ROUGE-L: the weight of recall
_CLITIC = re.compile(r"(n't|'(?:s|re|ve|ll|m|d))\b")
_WORD = re.compile(r"n't\b|'(?:s|re|ve|ll|m|d)\b|\w+(?:[-.,/:'’]\w+)*")
Counts = Counter[tuple[str, ...]]


def tokenize(text: str) -> list[str]:
    """The words of a caption, close to the Penn Treebank's of COCO's evaluation, without Java.

    Lower case; ``n't``, ``'s``, ``'re``, ``'ve``, ``'ll``, ``'m`` and ``'d`` are words of their own; hyphens, periods
    and commas within a word or number are kept, all other punctuation is removed.

    >>> tokenize("The dog's T-shirt isn't red, it is blue.")
    ['the', 'dog', "'s", 't-shirt', 'is', "n't", 'red', 'it', 'is', 'blue']
    """
    return _WORD.findall(_CLITIC.sub(r" \1", text.lower().replace("’", "'")))


def splitter(references: Iterable[Sequence[str]]) -> Callable[[str], list[str]]:
    """The function that splits captions into words: `tokenize`, or one for scripts other than Latin."""
    return tokenize if is_latin([text for given in references for text in given]) else split_words


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1 to BLEU-4 of the corpus, and the means of ROUGE-L and CIDEr-D over the images.

    Args:
        hypotheses: One caption per image.
        references: One or more captions per image.

    >>> found = score(["a red circle on the left"], [["a red circle on the left"]])
    >>> found["bleu4"], found["rouge_l"]
    (1.0, 1.0)
    """
    split = splitter(references)
    written = [split(text) for text in hypotheses]
    right = [[split(text) for text in given] for given in references]
    figures = {f"bleu{n}": value for n, value in zip(ORDERS, bleu(written, right), strict=True)}
    figures["rouge_l"] = sum(map(rouge_l, written, right)) / max(len(written), 1)
    figures["cider_d"] = sum(cider_d(written, right)) / max(len(written), 1)
    return figures


def bleu(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """BLEU of the orders 1 to 4, 0..1, by sacreBLEU's counts, not smoothed (Papineni et al. 2002).

    The brevity penalty is that of the reference of the closest length, the shorter one of two.

    Args:
        hypotheses: Words of one caption per image.
        references: Words of one or more captions per image.
    """
    from sacrebleu.metrics import BLEU

    most = max(map(len, references), default=1)
    streams: Any = [[" ".join(given[n]) if n < len(given) else None for given in references] for n in range(most)]
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    found = metric.corpus_score([" ".join(words) for words in hypotheses], streams)
    precisions = [right / total if total else 0.0 for right, total in zip(found.counts, found.totals, strict=True)]
    logs = [math.log(p) if p else -math.inf for p in precisions]
    return [found.bp * math.exp(sum(logs[:n]) / n) for n in ORDERS]


def rouge_l(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of an image (Lin 2004): the F measure of the best precision and the best recall of the references."""
    shared = [(_common(hypothesis, words), len(words)) for words in references]
    precision = max(common for common, _ in shared) / max(len(hypothesis), 1)
    recall = max(common / max(length, 1) for common, length in shared)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision and recall else 0.0


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for n, their in enumerate(other, start=1):
            before, row[n] = row[n], before + 1 if word == their else max(row[n], row[n - 1])
    return row[-1]


class Frequencies(NamedTuple):
    """In how many images each n-gram occurs, for the weights of CIDEr-D."""

    grams: Counts  # images whose references have the n-gram
    images: int

    @classmethod
    def of(cls, references: Iterable[Sequence[Sequence[str]]]) -> Frequencies:
        """Count the n-grams of the references' words, of one or more captions per image."""
        grams, images = Counts(), 0
        for given in references:
            grams.update({gram for words in given for counts in _grams(words) for gram in counts})
            images += 1
        return cls(grams, images)


def cider_d(
    hypotheses: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    frequencies: Frequencies | None = None,
) -> list[float]:
    """CIDEr-D of each image, 0..10 (Vedantam et al. 2015, section 3 and appendix "CIDEr-D").

    The mean over the references and the orders n of ``10 exp(-(l_h - l_r)^2 / 2 sigma^2) min(g_h, g_r) g_r /
    |g_h| |g_r|``: g are n-gram counts weighted by the logarithm of the number of images over that of the images whose
    references have the n-gram; l are lengths.

    Args:
        hypotheses: Words of one caption per image.
        references: Words of one or more captions per image.
        frequencies: Those of other images, from which the weights are computed; None: of these.

    >>> [round(value, 2) for value in cider_d([["a", "dog"], ["two", "cats"]], [[["a", "dog"]], [["two", "cats"]]])]
    [5.0, 5.0]
    """
    images, number = Frequencies.of(references) if frequencies is None else frequencies
    size = math.log(max(number, 1))

    def weighted(counts: list[Counts]) -> list[dict[tuple[str, ...], float]]:
        return [{gram: n * (size - math.log(max(1, images[gram]))) for gram, n in one.items()} for one in counts]

    found = []
    for words, texts in zip(hypotheses, references, strict=True):
        mine, total = weighted(_grams(words)), 0.0
        for text in texts:
            alike = sum(map(_cosine, mine, weighted(_grams(text))))
            total += alike * math.exp(-((len(words) - len(text)) ** 2) / (2 * SIGMA**2))
        found.append(10 * total / (len(ORDERS) * max(len(texts), 1)))
    return found


def _grams(words: Sequence[str]) -> list[Counts]:
    return [Counter(zip(*(words[start:] for start in range(n)), strict=False)) for n in ORDERS]


def _cosine(mine: dict[tuple[str, ...], float], theirs: dict[tuple[str, ...], float]) -> float:
    """The product of two vectors, in which no weight of the first counts more than that of the second."""
    norm = math.sqrt(sum(w * w for w in mine.values()) * sum(w * w for w in theirs.values()))
    shared = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
    return shared / (norm or 1.0)


def signature() -> dict[str, str]:
    """The tokenizer and the definitions, for comparison."""
    from importlib.metadata import version

    return {
        "tokenizer": "close to PTB's, by a regular expression: lower case, clitics apart, punctuation removed; where "
        "most words of the references are not Latin: Unicode words, each letter of scripts without spaces",
        "bleu_signature": f"sacrebleu {version('sacrebleu')} counts, closest reference length, not smoothed, 0..1",
        "rouge_l_signature": f"coco-caption: best precision and best recall of the references, beta {BETA}",
        "cider_d_signature": f"n 1..4, sigma {SIGMA:g}, document frequencies of the references, times 10",
    }
