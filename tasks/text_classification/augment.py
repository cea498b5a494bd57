"""Augmentation of training texts: words are left out, swapped or replaced, and whole texts by paraphrases."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from mmattn.data.errors import DataError
from mmattn.tasks.common.options import check_range
from mmattn.tasks.text_classification.data import TextDataset, TextSample

CANDIDATES = 4  # replacements of a word that are considered
ROUNDS = 2  # words of each text for which replacements are looked up, times its share of replaced words


@dataclass
class TextAugment:
    """Random changes of training texts, which are a function of the sample's seed alone.

    Words with tags are left as they are. Both texts of a pair are changed.

    Args:
        deletion: Probability of leaving out a word (Wei and Zou 2019, section 2).
        swap: Probability of swapping a word with its neighbor.
        synonym: Probability of replacing a word by one that `model`, a masked language model, finds likely in its place
            (Kobayashi 2018, without the label).
        model: The masked language model: a run of `--loss.objective mlm`, or a public one with such a head.
        translation: Probability of replacing the text by its translation there and back (Sennrich et al. 2016).
        there: A translation model, a source of `mmattn.load`.
        back: A translation model of the opposite direction.
    """

    deletion: float = 0.0
    swap: float = 0.0
    synonym: float = 0.0
    model: str | None = None
    translation: float = 0.0
    there: str | None = None
    back: str | None = None
    synonyms: dict[str, dict[int, list[str]]] = field(default_factory=dict, init=False, repr=False)
    paraphrases: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        from mmattn.tasks.common.errors import ConfigError

        for name in ("deletion", "swap", "synonym", "translation"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"{name}: expected a number from 0 to 1, found {value!r}.")
            check_range(name, value, 0, 1)
        if bool(self.synonym) != (self.model is not None):
            raise ConfigError("synonym: expected together with data.augment.model, found one of them.")
        if bool(self.translation) != (self.there is not None and self.back is not None):
            raise ConfigError("translation: expected together with there and back, found some of them.")

    def prepare(self, dataset: TextDataset) -> None:
        """Look up the replacements of words and the paraphrases of all texts, which takes a pass over the data."""
        samples = [sample for sample in dataset.samples if sample.words is None]
        if not samples:
            raise DataError(dataset.name, "texts to augment", "words with tags alone, which are left as they are")
        texts = list(dict.fromkeys(t for s in samples for t in (s.text, s.text_pair) if t is not None))
        if self.synonym and not self.synonyms:
            self.synonyms = _synonyms(texts, str(self.model), self.synonym)
            sys.stderr.write(f"augment: replacements of {sum(map(len, self.synonyms.values())):,} words were found.\n")
        if self.translation and not self.paraphrases:
            self.paraphrases = _paraphrases(texts, str(self.there), str(self.back))
            sys.stderr.write(f"augment: {len(self.paraphrases):,} texts were translated there and back.\n")

    def __call__(self, sample: TextSample, seed: int) -> TextSample:
        """A changed sample."""
        if sample.words is not None:
            return sample
        random = Random(seed)
        pair = None if sample.text_pair is None else self._changed(sample.text_pair, random)
        return replace(sample, text=self._changed(sample.text, random), text_pair=pair, evidence=[])

    def _changed(self, text: str, random: Random) -> str:
        if self.translation and random.random() < self.translation:
            text = self.paraphrases.get(text, text)
        words, known = text.split(), self.synonyms.get(text, {})
        for place, candidates in known.items():
            if random.random() < self.synonym * len(words) / max(len(known), 1):
                words[place] = candidates[int(random.random() * len(candidates))]
        for place in range(len(words) - 1):
            if random.random() < self.swap:
                words[place], words[place + 1] = words[place + 1], words[place]
        kept = [word for word in words if random.random() >= self.deletion]
        return " ".join(kept or words[:1])


def _synonyms(texts: list[str], source: str, share: float) -> dict[str, dict[int, list[str]]]:
    """Likely replacements of some words of each text, by their index."""
    from mmattn.tasks.text_classification.predict import TextClassificationPredictor

    predictor = TextClassificationPredictor.load(source)
    found: dict[str, dict[int, list[str]]] = {}
    asked: list[tuple[str, int]] = []
    for number, text in enumerate(texts):
        words, random = text.split(), Random(number)
        places = [place for place, word in enumerate(words) if word.isalpha() and len(word) > 2]
        wanted = max(1, round(ROUNDS * share * len(words)))
        asked += [(text, place) for place in sorted(places, key=lambda _: random.random())[:wanted]]
    for (text, place), candidates in zip(asked, predictor.replacements(asked, CANDIDATES + 1), strict=True):
        own = text.split()[place].lower()
        others = [word for word in candidates if word.lower() != own and word.isalpha()][:CANDIDATES]
        if others:
            found.setdefault(text, {})[place] = others
    return found


def _paraphrases(texts: Iterable[str], there: str, back: str) -> dict[str, str]:
    """Each text's translation there and back."""
    from mmattn.tasks.common.task import tasks

    predictor: Any = tasks()["translation"].resolve("predictor")
    texts = list(texts)
    foreign = [one.translation for one in predictor.load(there).predict(texts)]
    kept = [(text, other) for text, other in zip(texts, foreign, strict=True) if other.strip()]
    again = [one.translation for one in predictor.load(back).predict([other for _, other in kept])]
    return {text: found for (text, _), found in zip(kept, again, strict=True) if found.strip()}
