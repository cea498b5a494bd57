"""From a sentence to its translation, with the processor that training used."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError, Problems, is_broken, shorten
from mmattn.data.readers import read_rows
from mmattn.tasks.common.predictor import Predictor, check_source, listed, load_parts
from mmattn.tasks.common.seq2seq.adapters import PublicModel
from mmattn.tasks.common.seq2seq.data import PairProcessor, collate
from mmattn.tasks.common.seq2seq.model import search, search_options
from mmattn.tasks.translation.data import TranslationSample, decode_lines, read_lines, sample_of
from mmattn.tasks.translation.model import TranslationModel

logger = logging.getLogger(__name__)
Item = str | Mapping[str, Any] | TranslationSample


@dataclass
class Translation:
    """What the model makes of one sentence."""

    id: str
    source: str
    translation: str
    score: float  # log p / length^length_penalty
    tokens_cut: int = 0  # of the source, at its end, that the model did not read


@dataclass
class Alignment:
    """Which source words each word of a translation was read off."""

    translation: Translation
    words: list[str]  # of the translation
    source_words: list[str]
    weights: Tensor  # (words, source words), rows sum to one

    def save(self, path: str | Path) -> None:
        """Write a PNG: a row a word of the translation, a column a word of the source."""
        from mmattn.plot import heat_map

        if not self.words:
            raise DataError(f"item {self.translation.id}", "a translation to explain", "an empty one")
        shown = slice(0, 60)  # more labels could not be read
        heat_map(
            self.weights[shown, shown],
            self.words[shown],
            self.source_words[shown],
            path,
            row_name="translation",
            col_name="source",
        )


class Translator(Predictor):
    """A translation model with its processor, ready to translate.

    Args:
        model: on its device, in evaluation mode.
        processor: the one it was trained with.
    """

    lookahead = 8  # batches at a time, so that sentences of like lengths meet

    def __init__(self, model: TranslationModel | PublicModel, processor: PairProcessor) -> None:
        super().__init__(model, processor)
        self.search: dict[str, Any] = {}  # fields of GenerationConfig, in place of the model's own
        self.plain = False  # whether the command line writes plain lines, as it got them
        self.cut = 0  # sentences of which the end was not read

    # Translating ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def predict(self, items: Sequence[Item], batch_size: int = 32, **options: Any) -> list[Translation]:
        """Translate each item.

        Args:
            items: sentences, or mappings with `source` (or the language's name) and, if wanted, `id`.
            batch_size: items at a time.
            options: fields of `mmattn.generate.GenerationConfig`, in place of the model's own: num_beams=1; and
                `consensus`: whether to take the beam that agrees most with all beams, not the likeliest.

        Returns:
            A translation for each, in order; an empty one of an empty sentence.

        Raises:
            DataError: an item is no text; names it.
        """
        items = listed(items)
        samples = [self.as_sample(item, number) for number, item in enumerate(items)]
        found = {n: Translation(s.id, s.source, "", 0.0) for n, s in enumerate(samples) if not s.source.strip()}
        lengths = {
            n: self.processor.whole_length(self.processor.source, s.source)
            for n, s in enumerate(samples)
            if n not in found
        }
        order = sorted(lengths, key=lengths.__getitem__)
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = collate([samples[n] for n in places], self.processor).to(self.device)
            written = search(self.model, batch, self.processor, **{**self.search, **options})
            for n, (text, score) in zip(places, written, strict=True):
                cut = max(lengths[n] - self.processor.max_source_len, 0)
                self.cut += cut > 0
                found[n] = Translation(samples[n].id, samples[n].source, " ".join(text.split()), score, cut)
        return [found[n] for n in range(len(samples))]

    def explain(self, item: Item) -> Alignment:
        """Translate one item and tell what each word was read off."""
        sample = self.as_sample(item, 0)
        return self.explain_written([sample], self.predict([sample]))[0]

    def explain_written(self, samples: Sequence[TranslationSample], written: Sequence[Translation]) -> list[Alignment]:
        """What the words of given translations are read off, by one pass under teacher forcing."""
        from mmattn.explain import capture

        forced = [TranslationSample(s.id, s.source, w.translation) for s, w in zip(samples, written, strict=True)]
        batch = collate(forced, self.processor).to(self.device)
        with torch.no_grad(), capture(self.model) as maps:
            self.model(batch.source_ids, batch.source_mask, batch.target_ids)
        weights = self.model.alignment(maps).float().cpu()  # (B, L, S)
        found = []
        for n, (sample, translation) in enumerate(zip(forced, written, strict=True)):
            source_words, columns = self.processor.source.words(sample.source)
            words, rows = self.processor.target.words(sample.target)
            first = len(self.processor.target.prefix_ids), len(self.processor.source.prefix_ids)
            shown = weights[n, first[0] :, first[1] :][: len(rows), : len(columns)]
            columns, rows = columns[: shown.shape[1]], rows[: shown.shape[0]]
            joined = torch.zeros(len(rows), len(source_words)).index_add_(1, torch.tensor(columns).long(), shown)
            merged = torch.zeros(len(words), len(source_words)).index_add_(0, torch.tensor(rows).long(), joined)
            merged = merged / merged.sum(-1, keepdim=True).clamp_min(1e-9)
            found.append(Alignment(translation, words, source_words, merged))
        return found

    def programs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Write the encoder and the decoder's step, with its cache as flat tensors."""
        from mmattn.tasks.common.seq2seq.export import export_net

        return export_net(self.model.net, folder, formats)

    def as_sample(self, item: Item, number: int) -> TranslationSample:
        """A sample from what a user gives.

        Raises:
            DataError: no text; names the item.
        """
        if isinstance(item, TranslationSample):
            sample: TranslationSample | None = item
        elif isinstance(item, str):
            sample = TranslationSample(str(number), item)
        else:
            sample = sample_of(item, str(number), self._languages())
        if sample is None or not isinstance(sample.source, str) or is_broken(sample.source):
            found = f"the keys {', '.join(item)}" if sample is None else shorten(sample.source)  # type: ignore[arg-type]
            raise DataError(f"item {number}", f"a text of {self._languages()[0]}", found)
        return sample

    def _languages(self) -> tuple[str, str]:
        options = self.processor.options
        return options.get("source_lang", "source"), options.get("target_lang", "target")

    # The command line -------------------------------------------------------------------------------------------------

    def items(self, options: argparse.Namespace) -> list[TranslationSample]:
        """The sentences that `predict` and `explain` are asked about.

        `--text`; `--input` a JSONL file (JSON lines come out), any other file or `-` for standard input (a sentence a
        line; as many lines come out); `--input demo`, the first of the built-in test part.

        Raises:
            DataError: neither or both are given, or what is given cannot be read; names the line.
        """
        self.search |= search_options(options)
        self.plain = False
        check_source(options, "text")
        if options.input == "demo" and not Path("demo").exists():
            from mmattn.tasks.translation.demo import make

            return make("test", 6)
        path = options.input
        if path is not None and Path(path).suffix.lower() in (".jsonl", ".ndjson"):
            return self.read_json_lines(path, Problems(options.on_error))
        self.plain = True
        if path is None:
            lines = [options.text]
        else:
            lines = decode_lines(sys.stdin.buffer.read(), "standard input") if path == "-" else read_lines(path)
        return [TranslationSample(str(n), line) for n, line in enumerate(lines, start=1)]

    def read_json_lines(self, path: str, problems: Problems) -> list[TranslationSample]:
        """The sentences of a JSONL file; problems takes the lines without one.

        Raises:
            DataError: a bad line; names it.
        """
        samples = []
        for where, line, row in read_rows(path, problems):
            sample = sample_of(row, str(line), self._languages())
            if sample is None or not isinstance(sample.source, str):
                expected = f"the key {self._languages()[0]} or source, a text"
                problems.add(where, expected, f"the keys {', '.join(row)}")
            else:
                samples.append(sample)
        if problems.items:
            logger.warning("%s", problems.summary(path, len(samples)))
        return samples

    def line(self, record: dict[str, Any]) -> str:
        """What the command line writes of an answer: the translation alone where lines came in."""
        if self.plain:
            return record.get("translation", "")
        return json.dumps(record, ensure_ascii=False)

    def remark(self) -> str:
        """What was cut, for standard error."""
        limit = self.processor.max_source_len
        return (
            f"{self.cut} of the texts are longer than {limit} tokens; the rest of each was not read."
            if self.cut
            else ""
        )


def load(
    directory: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    prefix: str | None = None,
) -> Translator:
    """Load a translation model: the one in the package, that of a folder, or a public one.

    Args:
        directory: a `model/` folder of a run, or any copy of one; a folder of Marian, T5 or BART as the hub lays them
            out; or hf:owner/name.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "float32", "bfloat16", "int8" or None; see `tasks.load`.
        prefix: what T5 reads before each sentence; None: the one that its config.json has for translation, where that
            is one alone.

    Raises:
        CheckpointError: missing, damaged, foreign, or of another task.
    """
    parts = ("translation", directory, device, TranslationModel, PairProcessor, precision)
    return Translator(*load_parts(*parts, prefix=prefix))
