"""From a document to its summary, with the processor that training used."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError, Problems, shorten
from mmattn.tasks.common.predictor import Predictor, check_source, listed, load_parts
from mmattn.tasks.common.seq2seq.adapters import PublicModel
from mmattn.tasks.common.seq2seq.model import search, search_options
from mmattn.tasks.summarization.data import SummaryProcessor, SummarySample, collate, read_summaries
from mmattn.tasks.summarization.model import SummarizationModel

logger = logging.getLogger(__name__)
Item = Mapping[str, Any] | SummarySample | str
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv")


@dataclass
class Summary:
    """What the model makes of one document."""

    id: str
    summary: str
    score: float  # log p / length^length_penalty
    tokens_cut: int = 0  # of the document, at its end, that the model did not read


@dataclass
class SummaryExplanation:
    """Where in the document a summary stands out."""

    summary: Summary
    document: str
    spans: list[tuple[int, int]]  # characters of each token of the document that was read
    words: list[str]  # the summary's tokens, the end last
    word_spans: list[tuple[int, int]]  # characters of each of them in the summary
    weights: Tensor  # (L, S): of each of them, where it comes from; rows sum to one, the document's end left out

    def peak(self, span: tuple[int, int]) -> tuple[int, int]:
        """Where in the document the characters of the summary from and up to span come from: the likeliest token's."""
        rows = [n for n, (start, end) in enumerate(self.word_spans) if start < span[1] and end > span[0]]
        return self.spans[int(self.weights[rows].sum(0).argmax())]

    def save(self, path: str | Path) -> None:
        """Write a PNG: the document with its sources shaded, and a map of which word comes from where."""
        from mmattn.tasks.summarization.picture import draw

        draw(self, path)


class Summarizer(Predictor):
    """A summarization model with its processor, ready to write.

    Args:
        model: on its device, in evaluation mode.
        processor: the one it was trained with.
    """

    lookahead = 8  # batches at a time, so that documents of like lengths meet

    def __init__(self, model: SummarizationModel | PublicModel, processor: SummaryProcessor) -> None:
        super().__init__(model, processor)
        # Fields of GenerationConfig, in place of the model's own.
        self.search: dict[str, Any] = {}
        self.cut = 0  # documents of which the end was not read

    # Summarizing ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def predict(self, items: Sequence[Item], batch_size: int = 32, **options: Any) -> list[Summary]:
        """Summarize each item.

        Args:
            items: texts, or mappings with `document` and, if wanted, `id`.
            batch_size: items at a time.
            options: fields of `mmattn.generate.GenerationConfig`, in place of the model's own: num_beams=1; and
                `consensus`: whether to take the beam that agrees most with all beams, not the likeliest.

        Returns:
            A summary for each, in order.

        Raises:
            DataError: a document is empty or no text; names the item.
        """
        items = listed(items)
        samples = [as_sample(item, number) for number, item in enumerate(items)]
        # Documents of like lengths together: the longest decides what a batch costs.
        order = sorted(range(len(samples)), key=lambda n: self.processor.source.length(samples[n].source))
        found: dict[int, Summary] = {}
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = collate([samples[n] for n in places], self.processor).to(self.device)
            starts = {"sentence_starts": batch.sentence_starts}
            written = search(self.model, batch, self.processor, starts, **{**self.search, **options})
            for n, (text, score), cut in zip(places, written, batch.cut.tolist(), strict=True):
                self.cut += cut > 0
                found[n] = Summary(samples[n].id, text, round(score, 4), cut)
        return [found[n] for n in range(len(samples))]

    def explain(self, item: Item) -> SummaryExplanation:
        """Summarize one item and tell where in the document each word comes from."""
        sample = as_sample(item, 0)
        return self.explain_written([sample], self.predict([sample]))[0]

    def explain_written(self, samples: Sequence[SummarySample], written: Sequence[Summary]) -> list[SummaryExplanation]:
        """Where the words of given summaries come from, by one pass under teacher forcing."""
        from mmattn.explain import capture

        forced = [SummarySample(s.id, s.source, w.summary or " ") for s, w in zip(samples, written, strict=True)]
        batch = collate(forced, self.processor).to(self.device)
        with torch.no_grad(), capture(self.model) as maps:
            self.model(batch.source_ids, batch.source_mask, batch.target_ids, batch.sentence_starts)
        weights = self.model.sources(maps).float().cpu()  # (B, L, S)
        explanations = []
        for n, (sample, summary) in enumerate(zip(samples, written, strict=True)):
            spans = self.processor.document_tokens(sample.source)
            first = len(self.processor.target.prefix_ids), len(self.processor.source.prefix_ids)
            length = int(batch.label_mask[n].sum()) - first[0]
            rows = weights[n, first[0] :, first[1] :][:length, : len(spans)]
            rows = rows / rows.sum(-1, keepdim=True).clamp_min(1e-9)
            placed = self.processor.target.spans(forced[n].target)
            words = [*(forced[n].target[start:end] for start, end in placed), "(end)"][:length]
            end = len(forced[n].target)
            explanations.append(
                SummaryExplanation(summary, sample.source, spans, words, [*placed, (end, end)][:length], rows)
            )
        return explanations

    def programs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Write the encoder and the decoder's step, with its cache as flat tensors."""
        if isinstance(self.model, PublicModel):
            from mmattn.tasks.common.seq2seq.export import export_net

            return export_net(self.model.net, folder, formats)
        from mmattn.tasks.summarization.export import export_summarizer

        return export_summarizer(self.model, folder, formats)

    # The command line -------------------------------------------------------------------------------------------------

    def items(self, options: argparse.Namespace) -> list[SummarySample]:
        """The documents that `predict` and `explain` are asked about.

        `--text`; `--input` a JSONL, CSV or TSV file in the format for training (summaries may be missing), any other
        file (one document), or a folder of .txt files; `--input demo`, the first of the built-in test part.

        Raises:
            DataError: neither or both are given, or what is given cannot be read.
        """
        self.search |= search_options(options)
        check_source(options, "text")
        if options.input is None:
            return [as_sample({"document": options.text, "id": "text"}, 0)]
        if options.input == "demo" and not Path("demo").exists():
            from mmattn.tasks.summarization.demo import make

            return make("test", size=6)
        path = Path(options.input)
        if path.is_file() and path.suffix.lower() in TABLES:
            return read_documents(path, Problems(options.on_error))
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        if not files:
            raise DataError(str(path), "a folder with .txt files", "none")
        from mmattn.data.readers import read_text

        return [SummarySample(file.name, read_text(file)) for file in files]

    def remark(self) -> str:
        """What was cut, for standard error."""
        limit = self.processor.max_source_len
        return f"{self.cut} of the documents are longer than {limit} tokens; the rest was not read." if self.cut else ""


def read_documents(path: Path, problems: Problems) -> list[SummarySample]:
    """The documents of a table; problems takes the lines without one.

    Raises:
        DataError: a bad line; names it.
    """
    samples = []
    for where, sample in read_summaries(path, False, problems):
        if isinstance(sample.source, str) and sample.source.strip():
            samples.append(sample)
        else:
            problems.add(where, "a document, a text that is not empty", shorten(sample.source))
    if problems.items:
        logger.warning("%s", problems.summary(str(path), len(samples)))
    return samples


def as_sample(item: Item, number: int) -> SummarySample:
    """A sample from what a user gives.

    Raises:
        DataError: no document, or an empty one; names the item.
    """
    if isinstance(item, str):
        item = {"document": item}
    if isinstance(item, Mapping):
        if not isinstance(item.get("document"), str):
            raise DataError(
                f"item {item.get('id', number)}", "the key document, a text", ", ".join(sorted(item)) or "none"
            )
        item = SummarySample(str(item.get("id", number)), item["document"])
    if not item.source.strip():
        raise DataError(f"item {item.id}", "a document", "an empty one")
    return item


def load(
    directory: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    prefix: str | None = None,
) -> Summarizer:
    """Load a summarization model: the one in the package, that of a folder, or a public one.

    Args:
        directory: a `model/` folder of a run, or any copy of one; a folder of BART or T5 as the hub lays them out; or
            hf:owner/name.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "float32", "bfloat16", "int8" or None; see `tasks.load`.
        prefix: what T5 reads before each document; None: the one that its config.json has for summarization.

    Raises:
        CheckpointError: missing, damaged, foreign, or of another task.
    """
    parts = ("summarization", directory, device, SummarizationModel, SummaryProcessor, precision)
    return Summarizer(*load_parts(*parts, prefix=prefix))
