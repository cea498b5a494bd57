"""The base class of all predictors: predictions and explanations from raw input, with a trained model."""

from __future__ import annotations

import inspect
import json
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar, overload

from mmattn.data.errors import UserError, is_user_error, nearest
from mmattn.tasks.common.adapter import CheckpointParts, read_parts
from mmattn.tasks.common.allocator import HEAP
from mmattn.tasks.common.checkpoint import PROCESSOR, save_directory
from mmattn.tasks.common.errors import ConfigError
from mmattn.tasks.common.files import atomic_folder
from mmattn.tasks.common.items import listed, mapping_of as mapping_of, name_of as name_of, single
from mmattn.tasks.common.outputs import check_export
from mmattn.tasks.common.review import Reviewing
from mmattn.tasks.common.sources import task_of
from mmattn.tasks.common.streaming import Streaming
from mmattn.tasks.common.task import tasks

if TYPE_CHECKING:
    import torch

TRANSFORMERS = "transformers"  # format of `export`
Item = TypeVar("Item")  # a user's input: a path, a mapping, a sample
Prediction = TypeVar("Prediction")  # a dataclass with an `id`


class Predictor(Reviewing, Streaming, Generic[Item, Prediction]):
    """A trained model with its processor, as returned by `load()` in every task.

    A task implements the conversion of an item to a sample (`to_sample`), the prediction of a batch (`predict_batch`)
    and its explanation (`explain_batch`), and for reports what `Reviewing` asks. Keyword-only parameters of
    `predict_batch` and `explain_batch` are the options of `predict` and `explain`.

    Args:
        model: The model, on its device. It is set to evaluation mode.
        processor: The processor that the model was trained with.
        parts: Checkpoint parts from which model and processor were built; `save` needs them. None: they were built by
            hand.
    """

    task: ClassVar[str]
    batch_size: ClassVar[int] = 32  # default of `predict` and `stream`
    lookahead: ClassVar[int] = 1  # number of batches that are sorted together by `length`, to reduce padding
    capacity: ClassVar[int] = 32 * 512 * 512  # pixels of a batch, in which all images have the size of the largest
    reserved: Sequence[Path] = ()  # files of the command that no option such as --masks may write
    plain: ClassVar[str | None] = None  # the only field that the command line prints if the input is lines of text

    def __init__(self, model: Any, processor: Any, parts: CheckpointParts | None = None) -> None:
        self.model, self.processor, self.parts = model.eval(), processor, parts
        self.packed = False  # whether weights are packed for speed on a CPU, see `load`

    @classmethod
    def load(
        cls, source: str | Path | None = None, device: str = "auto", precision: str | None = None, **options: Any
    ) -> Self:
        """Load a model of this task.

        Args:
            source: See `mmattn.load`; None: the model that ships with the task.
            device: "auto", "cpu", "cuda" or "cuda:N".
            precision: See `mmattn.load`.
            options: Additional options of the task's adapters, such as T5's prefix.

        Raises:
            CheckpointError: The checkpoint is missing, damaged, of an unknown format, or of another task.
            UserError: The device is not available, or the precision is not supported.
        """
        default = f"{cls.task}/{tasks()[cls.task].default_checkpoint}"
        return cls.from_parts(read_parts(cls.task, default if source is None else source, **options), device, precision)

    @classmethod
    def from_parts(cls, parts: CheckpointParts, device: str = "auto", precision: str | None = None) -> Self:
        """Build the predictor from checkpoint parts; see `load`."""
        from mmattn.onednn import use_onednn

        parts = parts.finished()
        model = parts.build(parts.keywords)
        predictor = cls(use_onednn(model.to(device_of(device))), parts.processor, parts)
        if precision is not None:
            from mmattn.linears import PRECISIONS, prepare

            if precision not in PRECISIONS:
                raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, found {precision!r}.")
            prepare(model.float(), precision)  # public weights may be in half precision
            predictor.packed = True
        return predictor

    # Methods that a task implements -----------------------------------------------------------------------------------

    @abstractmethod
    def to_sample(self, item: Item, number: int) -> Any:
        """Convert a user's item, at index `number` of its list, to a sample.

        Raises:
            DataError: A field is missing; the message names the item.
        """

    @abstractmethod
    def predict_batch(self, samples: Sequence[Any], batch: Any) -> list[Prediction]:
        """Compute a prediction for each sample of a batch made by `collate`."""

    @abstractmethod
    def explain_batch(self, samples: Sequence[Any], batch: Any) -> list[Any]:
        """Compute an explanation with `save(path)` for each sample of a batch made by `collate`."""

    @abstractmethod
    def export_graphs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Export the model as programs, compare them with it, and return a line for each file written."""

    @abstractmethod
    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[Any]:
        """Read the items of the file or folder given by `--input`.

        Args:
            path: The path as given; "-" is standard input if the task supports it.
            on_error: With "skip" bad lines are excluded, counted and reported.
            given: Fields that all items share, such as the question about each image of a folder.

        Raises:
            DataError: The input cannot be read; the message names the line.
        """

    @abstractmethod
    def demo_samples(self) -> Sequence[Any]:
        """A few samples of the built-in test split, for `--input demo`."""

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Validate the options of `predict` or `explain` before any input is read.

        Raises:
            ConfigError: A value is invalid; the message names the option.
        """
        return dict(options)

    def collate(self, samples: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """The batch that `predict_batch` gets with these options, on the model's device."""
        return self.processor.collate(samples).to(self.device)

    def length(self, sample: Any) -> int:
        """Length by which samples are sorted if `lookahead` is greater than one."""
        return 0

    def extent(self, sample: Any) -> tuple[int, int]:
        """Height and width of a sample in a batch, which holds at most `capacity` pixels; zero: not limited."""
        return 0, 0

    def lines(self, records: Iterable[Mapping[str, Any]], options: Mapping[str, Any]) -> Iterator[str]:
        """The text that the command line writes, from the records of predictions and errors: a line of JSON each.

        Args:
            records: The records.
            options: Options of `predict`.
        """
        return (json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def remark(self) -> str:
        """Text that the command line writes to standard error at the end."""
        return ""

    # ------------------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The model's device."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device.

        Raises:
            UserError: This machine has no such device.
        """
        self.model = self.model.to(device_of(str(device)))
        return self

    @property
    def labels(self) -> list[str] | None:
        """The names of the model's classes; None for models that generate text."""
        found = getattr(self.processor, "labels", None)
        return None if found is None else list(found)

    def __call__(self, item: Item, **options: Any) -> Prediction:
        """Predict one item; see `predict`."""
        return self.predict([single(item, "predict(items)")], **options)[0]

    @overload
    def predict(
        self, items: Sequence[Item], batch_size: int | None = ..., on_error: Literal["raise"] = ..., **options: Any
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, items: Sequence[Item], batch_size: int | None = ..., *, on_error: str, **options: Any
    ) -> list[Prediction | None]: ...

    def predict(
        self, items: Sequence[Item], batch_size: int | None = None, on_error: str = "raise", **options: Any
    ) -> Sequence[Prediction | None]:
        """Predict each item, in order.

        Args:
            items: Bare inputs (a path, an image, a text), mappings with the fields of an item, or samples.
            batch_size: Number of items in a batch; None: the task's default.
            on_error: With "skip" the prediction of a bad item is None.
            options: Options of the task; see `predict_batch`.

        Raises:
            DataError: An item cannot be read; the message names it.
            ConfigError: The task has no such option, or a value is invalid.
        """
        found = self.stream(items, batch_size, on_error, **options)
        return [None if isinstance(one, Exception) else one for one in found]

    def stream(
        self, items: Sequence[Item], batch_size: int | None = None, on_error: str = "raise", **options: Any
    ) -> Iterator[Prediction | Exception]:
        """Yield the predictions of `predict` one by one; with on_error "skip", the exception of each bad item."""
        batch_size = batch_size or self.batch_size
        options = self.check_options(self._known(self.predict_batch, options))
        items = listed(items)
        size = batch_size * self.lookahead
        for start in range(0, len(items), size):
            places = range(start, min(start + size, len(items)))
            samples: dict[int, Any] = {}
            found: dict[int, Prediction | Exception] = {}
            for place in places:
                try:
                    samples[place] = self.to_sample(items[place], place)
                except Exception as error:
                    found[place] = _skipped(error, on_error)
            order = sorted(samples, key=lambda place: self.length(samples[place])) if self.lookahead > 1 else [*samples]
            waiting = deque(places)
            for group in self._groups({place: samples[place] for place in order}, batch_size):
                found |= self._group(group, on_error, options)
                while waiting and waiting[0] in found:
                    yield found.pop(waiting.popleft())
            yield from (found[place] for place in waiting)

    def _groups(self, samples: Mapping[int, Any], batch_size: int) -> Iterator[dict[int, Any]]:
        """Split samples, in order, into batches of limited size."""
        group: dict[int, Any] = {}
        sides = (0, 0)
        for place, sample in samples.items():
            extent = self.extent(sample)
            sides = max(sides[0], extent[0]), max(sides[1], extent[1])
            if len(group) == batch_size or (group and (len(group) + 1) * sides[0] * sides[1] > self.capacity):
                yield group
                group, sides = {}, extent
            group[place] = sample
        if group:
            yield group

    def _group(
        self, samples: Mapping[int, Any], on_error: str, options: Mapping[str, Any]
    ) -> dict[int, Prediction | Exception]:
        """The predictions of one batch; if a sample in it is bad, each sample is predicted alone."""
        import torch

        rows = list(samples.values())
        try:
            with torch.inference_mode():
                found = self.predict_batch(rows, self.collate(rows, options), **options)
        except Exception as error:
            problem = _skipped(error, on_error)
            if len(rows) == 1:
                return dict.fromkeys(samples, problem)
            alone = [self._group({place: sample}, on_error, options) for place, sample in samples.items()]
            return {place: one for part in alone for place, one in part.items()}
        HEAP.check()
        return dict(zip(samples, found, strict=True))

    def explain(self, item: Item, **options: Any) -> Any:
        """Explain the prediction of one item. The explanation has a method `save(path)`.

        Args:
            item: See `predict`.
            options: Options of the task; see `explain_batch`.

        Raises:
            DataError: The item cannot be read, or the model has no attention.
        """
        return self.explain_all([single(item, "explain_all(items)")], **options)[0]

    def explain_all(self, items: Sequence[Item], **options: Any) -> list[Any]:
        """Explain the predictions of several items in one pass; see `explain`."""
        options = self.check_options(self._known(self.explain_batch, options))
        samples = [self.to_sample(item, number) for number, item in enumerate(listed(items))]
        found = self.explain_batch(samples, self.processor.collate(samples).to(self.device), **options)
        return self.with_truth(found, items)

    def _known(self, method: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Check that a method accepts the given options; those that are None are dropped."""
        parameters = inspect.signature(method).parameters.values()
        known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            wrong = next((name for name in options if name not in known), None)
            if wrong is not None:
                there = f"its options are: {', '.join(known)}" if known else "it has no options"
                raise ConfigError(f"{wrong}: {self.task} has no such option{nearest(wrong, known)}; {there}.")
        return {name: value for name, value in options.items() if value is not None}

    def save(self, directory: str | Path) -> Path:
        """Write the model as a folder that `load` reads, with the card's figures and licence; the write is atomic.

        Raises:
            UserError: The predictor was built by hand, or its weights are packed.
        """
        if self.parts is None or self.packed:
            reason = "its weights are packed" if self.packed else "`load` did not make it, so its keywords are unknown"
            raise UserError(f"save: this predictor cannot be saved: {reason}.")
        return save_directory(
            directory,
            task=self.task,
            model=self.model,
            keywords=self.parts.keywords,
            processor=self.processor,
            network=self.parts.network,
            own_data=self.parts.own_data,
            **self.parts.record,
        )

    def export(self, folder: str | Path, formats: Sequence[str] = ("onnx", "torch")) -> list[str]:
        """Export the model as torch.export and ONNX programs, compared with it, and write the processor.

        With ("transformers",), write a folder that transformers loads; see `mmattn.tasks.common.to_transformers`.

        Returns:
            A line for each file.

        Raises:
            UserError: The folder has a model, a run, or programs that were not exported into it; or transformers has
                no class that computes the same.
        """
        folder = Path(folder)
        if tuple(formats) == (TRANSFORMERS,):
            from mmattn.tasks.common.to_transformers import export_transformers

            return [export_transformers(self, folder)]
        check_export(folder)
        lines = self.export_graphs(folder, formats)
        atomic_folder(folder / PROCESSOR, self.processor.save)
        return [*lines, f"{folder / PROCESSOR} written: the preprocessing that the programs need."]


def load(source: str | Path, device: str = "auto", precision: str | None = None) -> Predictor[Any, Any]:
    """Load the predictor of a model of any task.

    Public models are read in the layout of the Hugging Face hub: Marian is loaded for translation, BART and T5 for
    summarization (`mmattn.tasks.translation.load` loads these for translation), SegFormer for segmentation; Whisper
    and, with a CTC head, wav2vec 2.0 and HuBERT for speech recognition.

    Args:
        source: A run's folder, or its `model/`; a named model, "asr/demo"; a folder with a public model's
            `config.json`, weights and tokenizer; or a repository of the hub, "hf:owner/name" or
            "hf:owner/name@revision".
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        precision: "float32", "bfloat16" or "int8": weights are packed for speed on a CPU, after which the model can
            neither be trained nor exported; None: weights are unchanged.

    Returns:
        The task's predictor, e.g. `mmattn.tasks.vqa.VQAPredictor`.

    Raises:
        CheckpointError: The model is missing or incomplete, or its task or family is not supported.
    """
    predictor = tasks()[task_of(source)].resolve("predictor")
    return predictor.load(source, device=device, precision=precision)  # type: ignore[no-any-return]


def _skipped(error: Exception, on_error: str) -> Exception:
    """Return the error of a bad item with on_error "skip"; raise it otherwise, or if the item is not its cause."""
    if on_error != "skip" or not is_user_error(error):
        raise error
    return error


def device_of(name: str) -> Any:
    """The torch device for "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: This machine has no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    with suppress(RuntimeError):
        device = torch.device(name)
        if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()):
            return device
    raise UserError(f"--device {name}: expected auto, cpu or a CUDA device of this machine.")
