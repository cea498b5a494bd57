"""Samples, batches and data set of text generation: documents, or prompts with their responses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from mmattn.data.batching import Batch
from mmattn.data.dataset import SampleDataset
from mmattn.data.errors import DataError, Problems, is_broken, shorten
from mmattn.data.table import Table
from mmattn.data.text.language import pieces as in_parts
from mmattn.tasks.text_generation.formats import FileText, read_texts
from mmattn.tasks.text_generation.tokens import FileTokens

HELD_OUT = 0.1  # of a single document, its last part
LEAST = 2  # tokens of a part


@dataclass
class Origin:
    """What a token of built-in text follows from."""

    token: int  # index of the token in the document
    sources: tuple[int, ...]  # indices of the tokens that determine it
    kind: str  # of the rule


@dataclass
class TextSample:
    """A document; or a prompt with its response, of which only the response is learned."""

    id: str
    text: str | FileText | FileTokens = ""  # the document, or the response; empty: to be generated
    prompt: str = ""
    log_p: float | None = None  # built-in data: of the text, by the grammar
    origins: list[Origin] = field(default_factory=list)  # built-in data
    place: int = 0  # of the item in its call: what is sampled depends on the seed and on it
    is_whole: bool = False  # whether the prompt is a conversation with all its special tokens, by a chat template

    def pieces(self) -> Iterator[str]:
        """Yields the text in parts of bounded size."""
        yield from in_parts([self.text]) if isinstance(self.text, str) else self.text

    @property
    def whole(self) -> str:
        """The text in one string."""
        return "".join(self.pieces())


@dataclass(kw_only=True)
class TextBatch(Batch):
    """Token ids with the next ids, which the model predicts."""

    input_ids: Tensor  # (B, L) long
    labels: Tensor  # (B, L) long, the id that follows each
    label_mask: Tensor  # (B, L) bool, True = counts in loss and metrics
    key_mask: Tensor | None = None  # (B, L) bool, True = a real token; None: all are
    documents: Tensor | None = None  # (B, L) long, numbers of the documents; None: attention crosses their ends
    ids: list[str]
    is_repeat: bool = False


class TextDataset(SampleDataset[TextSample]):
    """Documents or instructions from files (formats: ``formats.py``), or from memory, checked.

    Args:
        source: A path; samples; texts; or rows of a text, or of a prompt and a response.
        document: What a document of a text file is: the "file", or each "line" or "paragraph" (see ``formats.py``).
        options: Arguments of ``SampleDataset``.
    """

    item: ClassVar[str] = "text"
    columns = ("prompt", "response")

    def __init__(self, source: Any, document: str = "file", **options: Any) -> None:
        self.document = document
        if isinstance(source, (list, tuple)) and source and all(isinstance(item, str) for item in source):
            source = [{"text": item} for item in source]
        super().__init__(source, **options)

    def read(self, path: str | Path | Table, problems: Problems) -> Iterator[tuple[str, TextSample]]:
        for where, fields in read_texts(path, self.document, self.require_labels, problems):
            yield where, TextSample(**fields)

    def check(self, sample: TextSample) -> tuple[str, str] | None:
        for name, text in (("prompt", sample.prompt), ("text", sample.text)):
            if isinstance(text, (FileText, FileTokens)):
                continue  # checked while it was read
            if not isinstance(text, str):
                return f"a {name}, a string", shorten(text)
            if is_broken(text):
                return f"a {name} of UTF-8 text", shorten(text)
        if isinstance(sample.text, str) and not sample.text.strip():
            if self.require_labels:
                return "a text that is not empty", shorten(sample.text)
            if not sample.prompt:
                return "a prompt or a text that is not empty", shorten(sample.prompt)
        return None

    @property
    def is_instruction(self) -> bool:
        """Whether the samples are prompts with responses; some of the prompts may be empty."""
        if not self.samples or not isinstance(self.samples[0], TextSample):
            return False
        return any(sample.prompt for sample in self.samples)

    def identity(self, sample: TextSample) -> tuple[list[Any], Sequence[Any]]:
        if isinstance(sample.text, (FileText, FileTokens)):
            return [sample.id, sample.prompt], [sample.text]
        return [sample.id, sample.text, sample.prompt], []

    def inputs(self, sample: TextSample) -> tuple[list[Any], Sequence[Any]]:
        if isinstance(sample.text, FileTokens):
            return [sample.text.fingerprint()], []
        digest = hashlib.sha256(sample.prompt.encode())
        for piece in sample.pieces():
            digest.update(piece.encode())
        return [digest.hexdigest()], []

    def facts(self, sample: Any, files: bool = True) -> dict[str, Any]:
        if not isinstance(sample, TextSample):
            return {"tokens of the block": int(sample.size)}
        if isinstance(sample.text, FileTokens):
            return {"tokens": len(sample.text), "largest id": sample.text.largest}
        found = {"words of the prompt": len(sample.prompt.split())} if sample.prompt else {}
        return found | {"words of the text": sum(len(piece.split()) for piece in sample.pieces())}

    def label(self, sample: Any) -> str:
        return ""

    def divided(self, seed: int) -> tuple[Self, Self]:
        """Divides the documents; the last tenth of a single one is held out."""
        if len(self) > 1:
            return super().divided(seed)
        (sample,), (where,) = self.samples, self.places
        texts: tuple[Any, Any]
        if not isinstance(sample.text, str):
            texts = sample.text.divided(1 - HELD_OUT)
        else:
            cut = sample.text.rfind(" ", 0, int(len(sample.text) * (1 - HELD_OUT))) + 1
            texts = sample.text[:cut], sample.text[cut:]
        parts = []
        for name, text in zip(("", " (held out)"), texts, strict=True):
            part = self.take([])
            part.places, part.samples = [where], [TextSample(sample.id, text)]
            part.name = f"{self.name}{name}"
            if isinstance(text, FileTokens):
                if len(text) < LEAST:
                    expected = f"at least {10 * LEAST} tokens, to hold a tenth out for validation"
                    raise DataError(self.name, expected, f"{len(sample.text)}")
            elif not any(piece.strip() for piece in part.samples[0].pieces()):
                first = shorten(next(sample.pieces())[:80])
                raise DataError(self.name, "a text of several words, to hold a part out for validation", first)
            parts.append(part)
        return parts[0], parts[1]
