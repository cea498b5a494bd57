"""From a text to the one that it becomes, and where its words come from: what translating and summarizing share."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from mmattn.data.errors import nearest
from mmattn.explain import capture
from mmattn.generate import GenerationConfig
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.common.seq2seq.data import PairBatch, PairSample
from mmattn.tasks.common.seq2seq.model import beside, search

Item = str | Mapping[str, Any] | PairSample
OPTIONS = ("mbr", *(field.name for field in dataclasses.fields(GenerationConfig)))
Written = TypeVar("Written")  # a prediction


class PairPredictor(Predictor[Item, Written]):
    """Writes a text for each source by greedy or beam search. A task says what it makes of one (`written`)."""

    lookahead = 8  # batches at a time, so that texts of like lengths meet
    cut_remark: ClassVar[str]  # the remark on so many sources that are longer than so many tokens
    cut = 0  # sources of which the end was not read

    # What a task provides ---------------------------------------------------------------------------------------------

    @abstractmethod
    def written(self, sample: PairSample, text: str, score: float, cut: int) -> Written:
        """The prediction: a text, its log p / length^length_penalty, and how many tokens of the source were not read"""

    @abstractmethod
    def explain_written(self, samples: Sequence[Any], written: Sequence[Any]) -> list[Any]:
        """Where the words of given predictions come from, by one pass under teacher forcing."""

    # ------------------------------------------------------------------------------------------------------------------

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        wrong = next((name for name in options if name not in OPTIONS), None)
        if wrong is not None:
            there = f"there are: {', '.join(OPTIONS)}"
            raise ConfigError(f"{wrong}: {self.task} has no such option{nearest(wrong, OPTIONS)}; {there}.")
        if options.get("num_beams", 1) < 1:
            raise ConfigError(f"--num_beams: expected 1 or more, found {options['num_beams']}.")
        return dict(options)

    def length(self, sample: PairSample) -> int:
        return self.processor.source.length(sample.source) if sample.source.strip() else -1

    def predict_batch(self, samples: Sequence[PairSample], batch: PairBatch, **options: Any) -> list[Written]:
        """A text for each source; an empty one for an empty source.

        Args:
            samples: of the batch.
            batch: of `collate`.
            options: fields of `mmattn.generate.GenerationConfig`, in place of the model's own, such as num_beams=1 or
                length_penalty=2.0; and `mbr`: whether to take the beam that agrees most with all beams, not the
                likeliest.
        """
        full = [sample for sample in samples if sample.source.strip()]
        if full and len(full) < len(samples):
            batch = self.processor.collate(full).to(self.device)
        found = iter(search(self.model, batch, self.processor, **options) if full else ())
        written = []
        for sample in samples:
            cut = self.processor.tokens_cut(sample.source)
            text, score = next(found) if sample.source.strip() else ("", 0.0)
            self.cut += cut > 0
            written.append(self.written(sample, text, score, cut))
        return written

    def explain_batch(self, samples: Sequence[PairSample], batch: PairBatch, **options: Any) -> list[Any]:
        """Where the words of each text come from; options as of `predict_batch`."""
        with torch.inference_mode():
            written = self.predict_batch(samples, batch, **options)
        return self.explain_written(samples, written)

    def alignments(self, samples: Sequence[PairSample]) -> Iterator[Tensor]:
        """Which tokens of the source each token of the target was read off, its end the last: (L, S) a sample."""
        batch = self.processor.collate(samples).to(self.device)
        with torch.no_grad(), capture(self.model) as maps:
            self.model(batch.source_ids, batch.source_mask, batch.target_ids, **beside(self.model, batch))
        weights = self.model.alignment(maps).float().cpu()  # (B, L, S)
        rows, columns = (len(side.prefix_ids) for side in (self.processor.target, self.processor.source))
        lengths = batch.label_mask.sum(1).tolist()
        return (one[rows:length, columns:] for one, length in zip(weights, lengths, strict=True))

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Write the encoder and the decoder's step, with its cache as flat tensors."""
        from mmattn.tasks.common.seq2seq.export import export_net

        return export_net(self.model.net, folder, formats)

    def remark(self) -> str:
        return self.cut_remark.format(self.cut, self.processor.max_source_len) if self.cut else ""
