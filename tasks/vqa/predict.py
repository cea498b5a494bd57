"""Predictions and explanations of VQA from images and questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.data.errors import DataError
from mmattn.data.image.processor import load_image
from mmattn.explain import capture
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.images import image_files
from mmattn.tasks.common.items import name_of
from mmattn.tasks.common.predictor import Predictor
from mmattn.tasks.common.seq2seq.processor import encode_targets
from mmattn.tasks.vqa.data import VQABatch, VQADataset, VQASample
from mmattn.tasks.vqa.metrics import vqa_accuracy
from mmattn.tasks.vqa.processor import MOST_TOKENS
from mmattn.tasks.vqa.writing import write_answers

Item = Mapping[str, Any] | VQASample


@dataclass
class VQAPrediction:
    """The predicted answer to a question."""

    id: str
    question: str
    answer: str
    score: float  # its probability over the answer vocabulary, 0..1
    alternatives: list[tuple[str, float]] = field(default_factory=list)  # the next most probable, with probabilities
    unknown_words: list[str] = field(default_factory=list)  # words that are not in the training vocabulary


@dataclass
class VQAExplanation:
    """The attention of a prediction to the image and to the question's words."""

    prediction: VQAPrediction
    image: Any  # a PIL image
    attention: Tensor  # (gh, gw) over the model's grid, sums to one
    window: tuple[float, float, float, float]  # the part of the image that the grid covers, xyxy in 0..1
    words: Tensor  # (L,) attention to the question's words, sums to one
    tokens: list[str]
    # The regions that determine the answer, if annotated.
    regions: list[tuple[float, float, float, float]] = field(default_factory=list)
    truth: str | None = None  # the answers, if they are known

    def save(self, path: str | Path) -> None:
        """Write a PNG of the image and of the attention overlaid on it."""
        from mmattn.plot import NEARLY_UNIFORM, caption, is_flat, overlay

        answer = f"{self.prediction.answer} ({self.prediction.score:.2f})"
        name = ": ".join(filter(None, (self.prediction.id, self.prediction.question)))
        title = caption(name, answer, self.truth, 6.8)
        read = self.words.topk(min(3, len(self.tokens)))
        words = ", ".join(f"{self.tokens[i]} {share:.2f}" for share, i in zip(*map(Tensor.tolist, read), strict=True))
        flat = is_flat(self.words, 1 / len(self.words)) and len(self.words) > 1
        below = [f"attention to words: {NEARLY_UNIFORM if flat else words}\nattention to the image"]
        overlay(self.image, self.attention, path, title, self.regions or None, titles=below, window=self.window)


class VQAPredictor(Predictor[Item, VQAPrediction]):
    """Predictor of visual question answering.

    Items are mappings with `image` (a path, the file's bytes, a PIL image or a uint8 array (H, W, 3)), `question` and,
    optionally, `id`.
    """

    task = "vqa"
    answer, graded_by = "answer", "accuracy"

    def to_sample(self, item: Item, number: int) -> VQASample:
        if isinstance(item, VQASample):
            return item
        if not isinstance(item, Mapping):
            raise DataError(f"item {number}", "a mapping with the keys image and question", type(item).__name__)
        name = name_of(item, number, ("image", "question"))
        if not str(item["question"]).strip():
            raise DataError(f"item {name}", "a question", "an empty one")
        return VQASample(id=name, image=item["image"], question=str(item["question"]))

    def truth(self, item: Item) -> str | None:
        return ", ".join(dict.fromkeys(item.answers)) or None if isinstance(item, VQASample) else None

    def grade(self, item: Item, truth: str, prediction: VQAPrediction) -> float:
        return vqa_accuracy(prediction.answer, item.answers) if isinstance(item, VQASample) else 0.0

    def text(self, item: Item) -> str:
        return item.question if isinstance(item, VQASample) else str(item["question"])

    def kind(self, item: Item) -> str:
        return item.answer_type if isinstance(item, VQASample) else ""

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        beams = options.get("num_beams")
        if beams is not None and (beams < 1 or self.processor.writer is None):
            expected = "1 or more" if self.processor.writer is not None else "none, since this model writes no answers"
            raise ConfigError(f"--num_beams: expected {expected}; found {beams}.")
        return super().check_options(options)

    def predict_batch(
        self, samples: Sequence[VQASample], batch: VQABatch, *, top_k: int = 1, num_beams: int | None = None
    ) -> list[VQAPrediction]:
        """Predict the answer to each question, with `top_k - 1` alternatives.

        Args:
            samples: The samples of the batch.
            batch: The batch, as of `collate`.
            top_k: Number of answers, the most probable first.
            num_beams: Number of beams of a model that writes its answers; None: the model's own.
        """
        if self.processor.writer is not None:
            found = write_answers(self.model, batch, self.processor, top_k, num_beams)
        else:
            logits = self.model(*batch.inputs).logits
            scores, order = logits.float().softmax(-1).topk(min(top_k, logits.shape[-1]))
            names = self.processor.answers
            found = [
                [(names[i], score) for i, score in zip(ids, row, strict=True)]
                for ids, row in zip(order.tolist(), scores.tolist(), strict=True)
            ]
        answers = []
        for sample, row in zip(samples, found, strict=True):
            named = [(text, round(score, 4)) for text, score in row]
            unknown = self.processor.tokenizer.unknown_words(sample.question)
            answers.append(VQAPrediction(sample.id, sample.question, *named[0], named[1:], unknown))
        return answers

    def explain_batch(
        self, samples: Sequence[VQASample], batch: VQABatch, *, num_beams: int | None = None
    ) -> list[VQAExplanation]:
        """Compute the attention of each question to its image and words; of public networks, relevance."""
        with torch.inference_mode():
            answers = self.predict_batch(samples, batch, num_beams=num_beams)
        words, attention = self._maps(samples, batch, [found.answer for found in answers])
        explanations = []
        for n, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
            image = load_image(sample.image, name=f"item {sample.id}")
            window = self.processor.image.window(image.size)
            tokens = self.processor.tokens(sample.question)
            shown = (attention[n], window, words[n][: len(tokens)], tokens, list(sample.regions))
            explanations.append(VQAExplanation(answer, image, *shown))
        return explanations

    def _maps(
        self, samples: Sequence[VQASample], batch: VQABatch, answers: Sequence[str]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """What words, (L,) each, and cells, (gh, gw) each, contribute to the answers to each question."""
        if not hasattr(self.model, "relevance"):
            with torch.no_grad(), capture(self.model) as maps:
                self.model(*batch.inputs)
            cells = self.model.grid_attention(maps, batch.image_index, batch.key_mask)  # (B, gh, gw)
            words = self.model.word_attention(maps, batch.key_mask)  # (B, L)
            return words.float().cpu(), cells.float().cpu()  # type: ignore[return-value]
        found = []
        for sample, answer in zip(samples, answers, strict=True):  # one by one, for the memory
            batch = self.processor.collate([sample]).to(self.device)
            given: dict[str, Tensor] = {}
            if self.processor.writer is not None:
                forced = encode_targets(self.processor.writer, [answer], MOST_TOKENS)
                given = {name: tensor.to(self.device) for name, tensor in forced.items()}
            words, (patches,) = self.model.relevance(*batch.inputs, **given)
            found.append((words[0].float().cpu(), patches.float().cpu()))
        return [words for words, _ in found], [patches for _, patches in found]

    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[Item]:
        """Read the questions of a file in any of the training formats, or a folder's images with one `question`."""
        if not Path(path).exists():
            raise DataError(path, "a JSON, JSONL or CSV file, or a folder of images", "no such file")
        images = image_files(path)
        if not images:
            return VQADataset(path, on_error=on_error, require_labels=False).samples
        if "question" not in given:
            raise DataError(path, "images and --question", "no question")
        return [{"image": file, "id": name, **given} for name, file in images]

    def demo_samples(self) -> list[VQASample]:
        """A question of each family of the built-in test split, each about a different scene."""
        from mmattn.tasks.vqa.demo import FAMILIES, make

        samples = make("test", size=3 * len(FAMILIES))
        chosen: list[VQASample] = []
        for family in FAMILIES:
            seen = {sample.image_key() for sample in chosen}
            chosen.append(next(s for s in samples if s.question_type == family and s.image_key() not in seen))
        return chosen

    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export a program with dynamic batch size and question length; of a model that writes answers, two."""
        from mmattn.tasks.vqa.export import export_vqa

        return export_vqa(self.model, self.processor, folder, formats)


load = VQAPredictor.load
