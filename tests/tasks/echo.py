"""A predictor whose answers are known: texts in capitals; some texts fail, wait or are bad."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mmattn.data.errors import DataError
from mmattn.tasks.common.predictor import Predictor


@dataclass
class EchoPrediction:
    id: str
    label: str


class EchoExplanation:
    def save(self, path: str | Path) -> None:
        Path(path).write_bytes(b"\x89PNG")


class EchoProcessor:
    labels = None

    def collate(self, rows: Sequence[Any]) -> Any:
        return self

    def to(self, device: Any) -> Any:
        return self


class Echo(Predictor[Any, EchoPrediction]):
    """Items are texts; "bad" is a bad one, "crash" lets the model fail, and "sleep" takes two seconds.

    Args:
        seconds: How long a batch takes.
    """

    task = "text_classification"

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(nn.Linear(1, 1), EchoProcessor())
        self.seconds, self.sizes, self.pieces = seconds, list[int](), 0
        self.go = threading.Semaphore(1)

    def to_sample(self, item: Mapping[str, Any], number: int) -> Any:
        if item["text"] == "bad":
            raise DataError(f"item {item['id']}", "a good text", "a bad one")
        return item

    def predict_batch(self, samples: Sequence[Any], batch: Any, *, top_k: int = 1) -> list[EchoPrediction]:
        self.sizes.append(len(samples))
        texts = [sample["text"] for sample in samples]
        time.sleep(2.0 if "sleep" in texts else self.seconds)
        if "crash" in texts:
            raise RuntimeError("a secret of the model")
        return [EchoPrediction(sample["id"], sample["text"].upper()) for sample in samples]

    def explain_batch(self, samples: Sequence[Any], batch: Any) -> list[EchoExplanation]:
        return [EchoExplanation() for _ in samples]

    def can_stream(self, options: Mapping[str, Any]) -> bool:
        return options.get("top_k", 1) == 1

    def stream_text(self, item: Mapping[str, Any], **options: Any) -> Iterator[str]:
        if item["text"] == "crash":
            raise RuntimeError("a secret of the model")
        for word in item["text"].split():
            self.go.acquire()
            self.pieces += 1
            yield f"{word.upper()} "

    def demo_samples(self) -> Sequence[Any]:
        return [{"text": "an example"}]

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        raise NotImplementedError

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[Any]:
        raise NotImplementedError
