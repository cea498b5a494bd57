"""From raw input to predictions and explanations, with a shipped model: what the predictors of all tasks share."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar, overload

from mmattn.data.errors import DataError, UserError, is_user_error, nearest
from mmattn.tasks.common.adapter import CheckpointParts, read_parts
from mmattn.tasks.common.checkpoint import PROCESSOR, load_weights, save_directory
from mmattn.tasks.common.errors import CheckpointError, ConfigError
from mmattn.tasks.common.sources import task_of
from mmattn.tasks.common.task import tasks

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")  # what a user gives: a path, a mapping, a sample
Prediction = TypeVar("Prediction")  # a dataclass with an `id`


class Predictor(Generic[Item, Prediction]):
    """What `load()` returns in every task: a model with its processor, ready to predict.

    A task says what a sample is made of (`to_sample`), what a batch of them gives (`predict_batch`), and how it is
    explained (`explain_batch`); the keyword-only parameters of these are the options that `predict` and `explain` take.

    Args:
        model: on its device; it is put in evaluation mode.
        processor: the one it was trained with.
        parts: what the two were made from, which `save` needs; None: they were made by hand.
    """

    task: ClassVar[str]
    batch_size: ClassVar[int] = 32  # of `predict` and `stream`, where none is given
    lookahead: ClassVar[int] = 1  # batches that are sorted together by `length`, so that like meets like
    plain: ClassVar[str | None] = None  # the field that the command line writes alone, where lines of text came in

    def __init__(self, model: Any, processor: Any, parts: CheckpointParts | None = None) -> None:
        self.model, self.processor, self.parts = model.eval(), processor, parts
        self.packed = False  # for speed on a CPU, see `load`

    @classmethod
    def load(
        cls, source: str | Path | None = None, device: str = "auto", precision: str | None = None, **options: Any
    ) -> Self:
        """Load a model of this task.

        Args:
            source: see `mmattn.load`; None: the model that ships with the task.
            device: "auto", "cpu", "cuda" or "cuda:N".
            precision: as of `mmattn.load`.
            options: what the task's adapters take beside, such as the prefix that T5 reads.

        Raises:
            CheckpointError: missing, damaged, foreign, or of another task.
            UserError: no such device or precision.
        """
        default = f"{cls.task}/{tasks()[cls.task].default_checkpoint}"
        return cls.from_parts(read_parts(cls.task, default if source is None else source, **options), device, precision)

    @classmethod
    def from_parts(cls, parts: CheckpointParts, device: str = "auto", precision: str | None = None) -> Self:
        """The predictor of a model in its parts; see `load`."""
        parts = parts.finished()
        try:
            model = parts.adapter.build(parts.keywords)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{parts.where}: the model's keywords do not fit this version: {error}.") from None
        load_weights(model, parts.state, parts.where)
        predictor = cls(model.to(device_of(device)), parts.processor, parts)
        if precision is not None:
            from mmattn.linears import PRECISIONS, prepare

            if precision not in PRECISIONS:
                raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, found {precision!r}.")
            prepare(model, precision)
            predictor.packed = True
        return predictor

    # What a task provides ---------------------------------------------------------------------------------------------

    @abstractmethod
    def to_sample(self, item: Item, number: int) -> Any:
        """A sample from what a user gives, the number-th item.

        Raises:
            DataError: something is missing; names the item.
        """

    @abstractmethod
    def predict_batch(self, samples: Sequence[Any], batch: Any) -> list[Prediction]:
        """A prediction for each sample of a batch that `collate` made."""

    @abstractmethod
    def explain_batch(self, samples: Sequence[Any], batch: Any) -> list[Any]:
        """An explanation with `save(path)` for each sample of a batch that `collate` made."""

    @abstractmethod
    def programs(self, folder: Path, formats: Sequence[str]) -> list[str]:
        """Write the model as programs, check them against it, say what was written."""

    @abstractmethod
    def open_input(self, path: str, on_error: str = "raise", **given: Any) -> Sequence[Any]:
        """The items of a file or folder that the command line's `--input` names.

        Args:
            path: as it was given; standard input is "-", where a task takes it.
            on_error: "skip" leaves bad lines out, counts and reports them.
            given: the item's other parts, such as the question about each image of a folder.

        Raises:
            DataError: it cannot be read; names the line.
        """

    @abstractmethod
    def demo_samples(self) -> Sequence[Any]:
        """A few samples of the built-in test part, for `--input demo`."""

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of `predict` or `explain`, checked before anything is read.

        Raises:
            ConfigError: a value that cannot be; named.
        """
        return dict(options)

    def length(self, sample: Any) -> int:
        """How much of a batch a sample takes, where `lookahead` is more than one."""
        return 0

    def remark(self) -> str:
        """What the command line says on standard error at the end."""
        return ""

    # ------------------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = next(self.model.parameters()).device
        return found

    def to(self, device: str | torch.device) -> Self:
        """Moves the model.

        Raises:
            UserError: no such device here.
        """
        self.model = self.model.to(device_of(str(device)))
        return self

    @property
    def labels(self) -> list[str] | None:
        """The names of what the model chooses among; None where it writes text."""
        found = getattr(self.processor, "labels", None)
        return None if found is None else list(found)

    def __call__(self, item: Item, **options: Any) -> Prediction:
        """The prediction of one item; see `predict`."""
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
        """A prediction for each item, in order.

        Args:
            items: bare ones (a path, an image, a text), mappings with what belongs to one, or samples.
            batch_size: items at a time; none: the task's own number.
            on_error: "skip" puts None in the place of a bad item.
            options: the task's own; see `predict_batch`.

        Raises:
            DataError: an item cannot be read; names it.
            ConfigError: an option that the task has not, or a value that cannot be.
        """
        found = self.stream(items, batch_size, on_error, **options)
        return [None if isinstance(one, Exception) else one for one in found]

    def stream(
        self, items: Sequence[Item], batch_size: int | None = None, on_error: str = "raise", **options: Any
    ) -> Iterator[Prediction | Exception]:
        """As `predict`, each as soon as it is known; with on_error "skip" the error in the place of a bad item."""
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
            for first in range(0, len(order), batch_size):
                group = order[first : first + batch_size]
                found |= self._group({place: samples[place] for place in group}, on_error, options)
            yield from (found[place] for place in places)

    def _group(
        self, samples: Mapping[int, Any], on_error: str, options: Mapping[str, Any]
    ) -> dict[int, Prediction | Exception]:
        """The predictions of one batch; where something in it is bad, of each sample alone."""
        import torch

        rows = list(samples.values())
        try:
            with torch.inference_mode():
                found = self.predict_batch(rows, self.processor.collate(rows).to(self.device), **options)
        except Exception as error:
            problem = _skipped(error, on_error)
            if len(rows) == 1:
                return dict.fromkeys(samples, problem)
            alone = [self._group({place: sample}, on_error, options) for place, sample in samples.items()]
            return {place: one for part in alone for place, one in part.items()}
        return dict(zip(samples, found, strict=True))

    def explain(self, item: Item, **options: Any) -> Any:
        """The explanation of one item's prediction, with `save(path)`.

        Args:
            item: as of `predict`.
            options: the task's own; see `explain_batch`.

        Raises:
            DataError: it cannot be read, or the model attends to nothing.
        """
        return self.explain_all([single(item, "explain_all(items)")], **options)[0]

    def explain_all(self, items: Sequence[Item], **options: Any) -> list[Any]:
        """The explanations of several items in one pass; see `explain`."""
        options = self.check_options(self._known(self.explain_batch, options))
        samples = [self.to_sample(item, number) for number, item in enumerate(listed(items))]
        return self.explain_batch(samples, self.processor.collate(samples).to(self.device), **options)

    def _known(self, method: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that are given, of those that a method takes."""
        parameters = inspect.signature(method).parameters.values()
        known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            wrong = next((name for name in options if name not in known), None)
            if wrong is not None:
                there = f"there are: {', '.join(known)}" if known else "there are none"
                raise ConfigError(f"{wrong}: {self.task} has no such option{nearest(wrong, known)}; {there}.")
        return {name: value for name, value in options.items() if value is not None}

    def save(self, directory: str | Path) -> Path:
        """Write the model as a folder that `load` reads, whole or not at all.

        Raises:
            UserError: it was made by hand, or its weights are packed.
        """
        if self.parts is None or self.packed:
            reason = "packed for speed" if self.packed else "not loaded, so that its keywords are not known"
            raise UserError(f"save: expected a model as it was loaded, found one that is {reason}.")
        return save_directory(
            directory,
            task=self.task,
            model=self.model,
            keywords=self.parts.keywords,
            processor=self.processor,
            network=self.parts.network,
            own_data=self.parts.own_data,
        )

    def export(self, folder: str | Path, formats: Sequence[str] = ("onnx", "torch")) -> list[str]:
        """Write the model as torch.export and ONNX programs, checked against it, and the processor.

        Returns:
            A line for each file.
        """
        lines = self.programs(Path(folder), formats)
        self.processor.save(Path(folder) / PROCESSOR)
        return [*lines, f"{Path(folder) / PROCESSOR} written: the preprocessing that the programs need."]


def load(source: str | Path, device: str = "auto", precision: str | None = None) -> Predictor[Any, Any]:
    """Load the predictor of a model, whichever task it is of.

    Public models are read as the Hugging Face hub lays them out: Marian translates, BART and T5 summarize
    (`mmattn.tasks.translation.load` lets these translate), SegFormer segments, Whisper and, where they have a CTC head,
    wav2vec 2.0 and HuBERT recognize speech.

    Args:
        source: the `model/` folder of a run, or the run's; a named model, "asr/demo"; a folder with a public model's
            `config.json`, weights and tokenizer; or "hf:owner/name", "hf:owner/name@revision", a repository of the hub.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        precision: "float32", "bfloat16" or "int8": weights are packed for speed on a CPU, after which the model can
            neither be trained nor exported; None: they stay as they are.

    Returns:
        The task's predictor, e.g. `mmattn.tasks.vqa.VQAPredictor`.

    Raises:
        CheckpointError: there is no model, it is incomplete, or of a task or family that this version has not.
    """
    predictor = tasks()[task_of(source)].resolve("predictor")
    return predictor.load(source, device=device, precision=precision)  # type: ignore[no-any-return]


def _skipped(error: Exception, on_error: str) -> Exception:
    """The error of a bad item, where such are left out; raised where not, or where it is none of the item's."""
    if on_error != "skip" or not is_user_error(error):
        raise error
    return error


def listed(items: Any) -> Sequence[Any]:
    """The items that `predict` is given.

    Raises:
        DataError: one item stands for a list.
    """
    if isinstance(items, (str, bytes, Path, Mapping)) or not hasattr(items, "__getitem__") or hasattr(items, "shape"):
        raise DataError("predict", "a list of items", "one item: write predict([item]), or call the predictor with it")
    found: Sequence[Any] = items
    return found


def single(item: Any, instead: str) -> Any:
    """The item that a prediction or an explanation is asked for.

    Raises:
        DataError: a list stands for one.
    """
    if isinstance(item, list):
        raise DataError("predictor", f"one item; for a list write {instead}", f"a list of {len(item)}")
    return item


def mapping_of(item: Any, key: str) -> Mapping[str, Any]:
    """An item as a mapping: itself, or a bare one under its key, by its path where it has one."""
    if isinstance(item, Mapping):
        return item
    return {key: item} | ({"id": str(item)} if isinstance(item, (str, Path)) else {})


def name_of(item: Mapping[str, Any], number: int, wanted: Sequence[str]) -> str:
    """The id of an item that has these keys, its number where it has none.

    Raises:
        DataError: a key is missing; names the item.
    """
    name = str(item.get("id", number))
    if any(item.get(key) is None for key in wanted):
        keys = f"the key{'s' if len(wanted) > 1 else ''} {' and '.join(wanted)}"
        raise DataError(f"item {name}", keys, ", ".join(sorted(item)) or "none")
    return name


def device_of(name: str) -> Any:
    """The torch device for "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    with suppress(RuntimeError):
        device = torch.device(name)
        if device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()):
            return device
    raise UserError(f"--device {name}: expected auto, cpu or a CUDA device of this machine.")
