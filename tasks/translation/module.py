"""Training and evaluation of translation: BLEU and chrF by sacreBLEU on plain, cased text, with signatures."""

from __future__ import annotations

from typing import Any, cast

from mmattn.tasks.common.datamodule import Split
from mmattn.tasks.common.seq2seq.module import PairDataModule, PairModule
from mmattn.tasks.translation.data import TranslationDataset
from mmattn.tasks.translation.metrics import USUAL, score, signatures, tokenizer_of


class TranslationDataModule(PairDataModule):
    """Parallel text.

    Args:
        source_lang: Source language code; also the file extension, column or key of the source.
        target_lang: The same of the target.
        options: Arguments of PairDataModule.
    """

    task = "translation"

    def __init__(self, source_lang: str = "en", target_lang: str = "de", **options: Any) -> None:
        super().__init__(**options)
        self.languages = (source_lang, target_lang)
        self.processor_options["options"] = {"source_lang": source_lang, "target_lang": target_lang}

    def make_dataset(self, source: Any, split: Split) -> TranslationDataset:
        return TranslationDataset(source, *self.languages, on_error=self.on_error)


class TranslationModule(PairModule):
    """Cross-entropy training; BLEU and chrF by beam search."""

    task = "translation"
    scale = 100.0
    tokenizer = USUAL  # BLEU's, of the last score

    def score(self, hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
        texts = [text for given in references for text in given]
        self.tokenizer = tokenizer_of(cast(TranslationDataModule, self.data).languages[1], texts)
        return score(hypotheses, references, self.tokenizer)

    def notes(self) -> dict[str, str]:
        return signatures(self.tokenizer)
