"""Predictors of tasks that generate text."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
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
from mmattn.tasks.common.seq2seq.model import beside, decode_options, search
from mmattn.tasks.common.streaming import in_parts

Item = str | Mapping[str, Any] | PairSample
OPTIONS = ("mbr", *(field.name for field in dataclasses.fields(GenerationConfig)))
Written = TypeVar("Written")  # type of a prediction


class WritingPredictor(Predictor[Any, Written]):
    """Generates texts by greedy or beam search. Subclasses implement `predict_batch` and `explain_written`."""

    @abstractmethod
    def explain_written(self, samples: Sequence[Any], written: Sequence[Any]) -> list[Any]:
        """Explain given predictions by one pass under teacher forcing."""

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        wrong = next((name for name in options if name not in OPTIONS), None)
        if wrong is not None:
            there = f"its options are: {', '.join(OPTIONS)}"
            raise ConfigError(f"{wrong}: {self.task} has no such option{nearest(wrong, OPTIONS)}; {there}.")
        if options.get("num_beams", 1) < 1:
            raise ConfigError(f"--num_beams: expected 1 or more, found {options['num_beams']}.")
        return dict(options)

    def can_stream(self, options: Mapping[str, Any]) -> bool:
        given = {name: value for name, value in options.items() if name not in ("mbr", "beginning")}
        return decode_options(self.processor, None, **given).num_beams == 1

    def stream_text(self, item: Any, **options: Any) -> Generator[str, None, Written]:
        """Yield the text of one item in parts, as soon as they are generated; return the prediction.

        Args:
            item: See `predict`.
            options: Those of `predict_batch`, without beams: `num_beams=1`.

        Raises:
            ConfigError: There are beams, which settle no word before the end.
        """
        options = self.check_options(self._known(self.predict_batch, options))
        if not self.can_stream(options):
            raise ConfigError("--num_beams: expected 1 for a text in parts, since beams settle no word before the end.")
        sample = self.to_sample(item, 0)
        batch = self.processor.collate([sample]).to(self.device)

        predict: Any = self.predict_batch

        def write(send: Callable[[str], None]) -> tuple[str, Written]:
            def on_text(text: str) -> None:
                send(self.written_text(sample, text))

            with torch.inference_mode():
                (found,) = predict([sample], batch, on_text=on_text, **options)
            return self.answer_of(found), found

        return (yield from in_parts(write))

    def written_text(self, sample: Any, text: str) -> str:
        """A generated text, as predictions have it."""
        return text

    def explain_batch(self, samples: Sequence[Any], batch: Any, **options: Any) -> list[Any]:
        """Explain the text of each sample; options as for `predict_batch`."""
        with torch.inference_mode():
            written = self.predict_batch(samples, batch, **options)
        return self.explain_written(samples, written)

    def forced(self, batch: Any) -> Tensor:
        """Attention of each target token of a batch to what the model encodes, by one pass: (B, L, S)."""
        with torch.no_grad(), capture(self.model) as maps:
            self.model(*batch.forced, **beside(self.model, batch))
        return self.model.alignment(maps).float().cpu()  # type: ignore[no-any-return]


class PairPredictor(WritingPredictor[Written]):
    """Generates a text for each source by greedy or beam search. Subclasses make predictions of texts (`written`)."""

    lookahead = 8  # batches at a time, sorted by length
    cut_remark: ClassVar[str]  # format string for the number of truncated sources and the limit in tokens
    cut = 0  # number of truncated sources

    # Methods that a task implements -----------------------------------------------------------------------------------

    @abstractmethod
    def written(self, sample: PairSample, text: str, score: float, cut: int) -> Written:
        """Make a prediction of a text, its log p / length^length_penalty, and the number of truncated source tokens."""

    # ------------------------------------------------------------------------------------------------------------------

    def written_text(self, sample: Any, text: str) -> str:
        return self.answer_of(self.written(sample, text, 0.0, 0))

    def truth(self, item: Item) -> str | None:
        return item.right_targets()[0] or None if isinstance(item, PairSample) else None

    def text(self, item: Item) -> str:
        return item.source if isinstance(item, PairSample) else str(item)

    def length(self, sample: PairSample) -> int:
        return self.processor.source.length(sample.source) if sample.source.strip() else -1

    def predict_batch(self, samples: Sequence[PairSample], batch: PairBatch, **options: Any) -> list[Written]:
        """Predict a text for each source; empty sources give empty texts.

        Args:
            samples: The samples of the batch.
            batch: The batch, as of `collate`.
            options: Fields of `mmattn.generate.GenerationConfig` that override the model's own, such as num_beams=1 or
                length_penalty=2.0; and `mbr`: whether to return the beam of minimum Bayes risk instead of the most
                probable one.
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

    def alignments(self, samples: Sequence[PairSample]) -> Iterator[Tensor]:
        """Attention of each target token, the end token last, to the source tokens: (L, S) per sample."""
        batch = self.processor.collate(samples).to(self.device)
        weights = self.forced(batch)  # (B, L, S)
        rows, columns = (len(side.prefix_ids) for side in (self.processor.target, self.processor.source))
        lengths = batch.label_mask.sum(1).tolist()
        return (one[rows:length, columns:] for one, length in zip(weights, lengths, strict=True))

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export the encoder and the decoder's step, with its cache as flat tensors."""
        from mmattn.tasks.common.seq2seq.export import export_net

        return export_net(self.model.net, folder, formats)

    def remark(self) -> str:
        return self.cut_remark.format(self.cut, self.processor.max_source_len) if self.cut else ""
