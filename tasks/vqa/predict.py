"""From a picture and a question to an answer, with the processor that training used."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from data.errors import DataError
from data.vqa import VQABatch, VQADataset, VQAProcessor, VQASample, collate
from tasks.common.inference import Predictor, check_source, listed, load_parts
from tasks.vqa.model import VQAModel

Item = Mapping[str, Any] | VQASample
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass
class VQAAnswer:
    """What the model says to one question."""

    id: str
    question: str
    answer: str
    score: float  # its probability among the vocabulary's answers, 0..1
    alternatives: list[tuple[str, float]] = field(default_factory=list)  # the next best, with theirs
    unknown_words: list[str] = field(default_factory=list)  # words that training never saw


@dataclass
class VQAExplanation:
    """Where the model looked for its answer."""

    answer: VQAAnswer
    image: Any  # a PIL image
    attention: Tensor  # (gh, gw) over the model's grid, sums to one
    window: tuple[float, float, float, float]  # the part of the picture that the grid covers, xyxy in 0..1
    words: Tensor  # (L,) how much the question's words were read, sums to one
    tokens: list[str]
    regions: list[tuple[float, float, float, float]] = field(
        default_factory=list
    )  # where the answer does rest, if known
    remembered: list[tuple[str, float]] = field(
        default_factory=list
    )  # training questions that speak most for the answer, and what each adds to its score, if the model has a memory

    def save(self, path: str | Path) -> None:
        """Write a PNG: the picture, and the attention laid over it."""
        from mmattn.plot import overlay

        title = f"{self.answer.question}\n{self.answer.answer} ({self.answer.score:.2f})"
        read = self.words.topk(min(3, len(self.tokens)))
        words = ", ".join(f"{self.tokens[i]} {share:.2f}" for share, i in zip(*map(Tensor.tolist, read), strict=True))
        known = [f"{share:+.2f} {shorten(text, 38, placeholder=' ...')}" for text, share in self.remembered]
        below = [f"most read: {words}", *(["remembered:"] if known else []), *known]
        boxes = self.regions or None
        overlay(self.image, self.attention, path, title, boxes, titles=["\n".join(below)], window=self.window)


class VQAPredictor(Predictor):
    """A VQA model with its processor, ready to answer.

    Args:
        model: on its device, in evaluation mode.
        processor: the one it was trained with.
    """

    def __init__(self, model: VQAModel, processor: VQAProcessor) -> None:
        super().__init__(model, processor)
        self.top_k = 1  # how many answers `predict` gives to a question

    # Answering --------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def predict(self, items: Sequence[Item], batch_size: int = 32) -> list[VQAAnswer]:
        """Answer each item.

        Args:
            items: mappings with `image` (a path, PIL image or uint8 array (H, W, 3)), `question` and, if wanted, `id`.
            batch_size: items at a time.

        Returns:
            An answer for each item, in order, with `self.top_k - 1` alternatives.

        Raises:
            DataError: a picture cannot be read or a question is empty; names the item.
        """
        items = listed(items)
        answers: list[VQAAnswer] = []
        for start in range(0, len(items), batch_size):
            samples = [as_sample(item, start + n) for n, item in enumerate(items[start : start + batch_size])]
            batch = collate(samples, self.processor).to(self.device)
            logits = self.model(batch.pixel_values, batch.input_ids, batch.key_mask, batch.image_index).logits
            scores, order = logits.float().softmax(-1).topk(min(self.top_k, logits.shape[-1]))
            for sample, row, ids in zip(samples, scores.tolist(), order.tolist(), strict=True):
                named = [(self.processor.answers[i], round(score, 4)) for i, score in zip(ids, row, strict=True)]
                unknown = self.processor.tokenizer.unknown_words(sample.question)
                answers.append(VQAAnswer(sample.id, sample.question, *named[0], named[1:], unknown))
        return answers

    def explain(self, item: Item) -> VQAExplanation:
        """Answer one item and tell where the model looked."""
        from data.image import load_image

        return self.explain_batch([item], image=load_image)[0]

    def explain_batch(self, items: Sequence[Item], image: Any = None) -> list[VQAExplanation]:
        """Explain several items in one pass; `image` loads the pictures to draw on (none: they are left out)."""
        from mmattn.explain import capture

        samples = [as_sample(item, n) for n, item in enumerate(items)]
        batch = collate(samples, self.processor).to(self.device)
        with torch.no_grad(), capture(self.model) as maps:
            logits = self.model(batch.pixel_values, batch.input_ids, batch.key_mask, batch.image_index).logits
        remembered = self._recall(batch, logits.argmax(-1))
        attention = self.model.grid_attention(maps, batch.image_index, batch.key_mask).cpu()  # (B, gh, gw)
        words = self.model.word_attention(maps, batch.key_mask).cpu()  # (B, L)
        answers = self.predict(samples)
        explanations = []
        for n, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
            picture = image(sample.image, name=f"item {sample.id}") if image else None
            window = self.processor.image.window(picture.size) if picture else (0.0, 0.0, 1.0, 1.0)
            tokens = self.processor.tokenizer.tokens(sample.question)
            explanations.append(
                VQAExplanation(
                    answer,
                    picture,
                    attention[n],
                    window,
                    words[n, : len(tokens)],
                    tokens,
                    list(sample.regions),
                    remembered[n],
                )
            )
        return explanations

    def _recall(self, batch: VQABatch, best: Tensor) -> list[list[tuple[str, float]]]:
        """For each question the remembered ones behind its best answer (B,); nothing where there is no memory."""
        if self.model.memory is None:
            return [[] for _ in best]
        asked = (batch.pixel_values, batch.input_ids, batch.key_mask, batch.image_index)
        with torch.no_grad():
            added, tokens = (found.tolist() for found in self.model.memory.recall(*asked, best))
        decode = self.processor.tokenizer.decode
        return [
            [(decode([i for i in ids if i >= 0]), share) for ids, share in zip(*row, strict=True)]
            for row in zip(tokens, added, strict=True)
        ]

    # The command line -------------------------------------------------------------------------------------------------

    def items(self, options: argparse.Namespace) -> list[VQASample]:
        """The items that `predict` and `explain` are asked about.

        `--image` with `--question`; `--input` a folder of pictures with `--question`; `--input` a file in any of the
        formats for training (answers may be missing); `--input demo`, one question of each kind of the built-in test.

        Raises:
            DataError: neither or both are given, or what is given cannot be read.
        """
        self.top_k = getattr(options, "top_k", 1)
        check_source(options, "image", "question")
        if options.input is None:
            return [as_sample({"image": options.image, "question": options.question, "id": options.image}, 0)]
        if options.input == "demo" and not Path("demo").exists():
            return demo_samples()
        path = Path(options.input)
        if not path.exists():
            raise DataError(str(path), "a JSON, JSONL or CSV file, or a folder of pictures", "no such file")
        if path.is_file():
            return VQADataset(path, on_error=options.on_error, require_answers=False).samples
        pictures = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not pictures or options.question is None:
            found = f"{len(pictures)} pictures and {'no' if options.question is None else 'a'} question"
            raise DataError(str(path), "a folder with pictures, and --question", found)
        return [as_sample({"image": file, "question": options.question, "id": file.name}, 0) for file in pictures]

    def programs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Write the model as torch.export and ONNX programs, batch and question length free, checked against it."""
        from torch.export import Dim

        from tasks.common.export import export_model

        batch, length = Dim("batch", max=4096), Dim("length", max=self.model.max_text_len)
        dynamic = {"pixel_values": {0: batch}, "input_ids": {0: batch, 1: length}, "key_mask": {0: batch, 1: length}}
        examples = [self._example(2, 9), self._example(1, 3), self._example(5, 14)]
        return export_model(self.model, examples, dynamic, folder, "vqa", formats)

    def _example(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        length = min(length, self.model.max_text_len)
        ids = torch.randint(2, self.processor.tokenizer.vocab_size, (batch, length), generator=generator)
        mask = torch.arange(length)[None] < torch.tensor([[max(1, length - n)] for n in range(batch)])
        pixels = torch.randn(batch, 3, *self.processor.image.size, generator=generator)
        return {"pixel_values": pixels, "input_ids": ids.masked_fill(~mask, 0), "key_mask": mask}


def as_sample(item: Item, number: int) -> VQASample:
    """A sample from what a user gives.

    Raises:
        DataError: a key is missing, or the question is empty; names the item.
    """
    if isinstance(item, VQASample):
        return item
    name = f"item {item.get('id', number)}"
    missing = [key for key in ("image", "question") if item.get(key) is None]
    if missing:
        raise DataError(name, "the keys image and question", f"{', '.join(sorted(item)) or 'none'}")
    if not str(item["question"]).strip():
        raise DataError(name, "a question", "an empty one")
    return VQASample(id=str(item.get("id", number)), image=item["image"], question=str(item["question"]))


def demo_samples() -> list[VQASample]:
    """A question of each family of the built-in test part, each about another scene."""
    from data.demo.vqa import FAMILIES, make

    samples = make("test", num_scenes=3 * len(FAMILIES))
    chosen: list[VQASample] = []
    for family in FAMILIES:
        seen = {sample.image_key() for sample in chosen}
        chosen.append(next(s for s in samples if s.question_type == family and s.image_key() not in seen))
    return chosen


def load(directory: str | Path | None = None, device: str = "auto", precision: str | None = None) -> VQAPredictor:
    """Load a shipped VQA model: the one in the package, or that of a folder.

    Args:
        directory: a `model/` folder of a run, or any copy of one.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: as of `tasks.load`.

    Raises:
        CheckpointError: missing, damaged, foreign, or of another task.
    """
    return VQAPredictor(*load_parts("vqa", directory, device, VQAModel, VQAProcessor, precision))
