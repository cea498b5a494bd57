"""Training and measuring translation: sacreBLEU and chrF on plain text, cased, with their signatures."""

from __future__ import annotations

from typing import Any

from mmattn.tasks.common.datamodule import Split
from mmattn.tasks.common.seq2seq.module import PairDataModule, PairModule
from mmattn.tasks.translation.data import TranslationDataset
from mmattn.tasks.translation.metrics import score, signatures


class TranslationDataModule(PairDataModule):
    """Parallel text.

    Args:
        source_lang: the language read: the ending of its file, its column or its key.
        target_lang: the language written.
        options: what PairDataModule takes.
    """

    task = "translation"

    def __init__(self, source_lang: str = "en", target_lang: str = "de", **options: Any) -> None:
        super().__init__(**options)
        self.languages = (source_lang, target_lang)
        self.processor_options["options"] = {"source_lang": source_lang, "target_lang": target_lang}

    def make_dataset(self, source: Any, split: Split) -> TranslationDataset:
        return TranslationDataset(source, *self.languages, on_error=self.on_error)


class TranslationModule(PairModule):
    """Cross-entropy; BLEU and chrF by beam search."""

    task = "translation"

    def score(self, hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
        return score(hypotheses, references)

    def notes(self) -> dict[str, str]:
        return signatures()
