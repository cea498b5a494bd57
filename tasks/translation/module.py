"""Training and measuring translation: sacreBLEU and chrF on plain text, cased, with their signatures."""

from __future__ import annotations

from typing import Any

from mmattn.tasks.common.datamodule import Split
from mmattn.tasks.common.seq2seq.module import PairDataModule, PairModule
from mmattn.tasks.translation.data import TranslationDataset
from mmattn.tasks.translation.metrics import score, signatures
from mmattn.tasks.translation.model import TranslationModel


class TranslationDataModule(PairDataModule):
    """Parallel text.

    Args:
        source_lang: the language read: the ending of its file, its column or its key.
        target_lang: the language written.
        pairs: training pairs of the built-in data.
        options: what PairDataModule takes.
    """

    def __init__(
        self, source_lang: str = "en", target_lang: str = "de", pairs: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.languages, self.pairs = (source_lang, target_lang), pairs
        self.processor_options["options"] = {"source_lang": source_lang, "target_lang": target_lang}

    def open_pairs(self, split: Split, path: str | None) -> TranslationDataset:
        if path is None:
            from mmattn.tasks.translation.demo import make

            return TranslationDataset(make(split, size=self.pairs if split == "train" else None))
        return TranslationDataset(path, *self.languages, on_error=self.on_error)


class TranslationModule(PairModule):
    """Cross-entropy; BLEU and chrF by beam search."""

    task = "translation"
    model_class = TranslationModel
    monitor = "val/bleu"

    def score(self, hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
        return score(hypotheses, references)

    def notes(self) -> dict[str, str]:
        return signatures()


LIGHTNING = (TranslationModule, TranslationDataModule)
