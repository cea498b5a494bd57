"""Models that are built for weights: hostile or damaged keywords end in an error before they cost time or memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)
MOST = 1 << 20  # greatest keyword, unless the weights have a greater dimension
SPARE = 100  # parameters that a constructor may replace, in addition to those of the weights
BUFFERS = 1 << 26  # elements of buffers that are not saved, in addition to those of the weights


def build_for(
    state: Mapping[str, Tensor], build: Callable[[Mapping[str, Any]], Model], keywords: Mapping[str, Any]
) -> Model:
    """Builds a model for weights, if its parameters are theirs; the weights are not loaded.

    The model is first built on the meta device, where tensors have no memory, and no further than there are weights.

    Args:
        state: The weights, under the model's names.
        build: Makes the model from its keywords.
        keywords: Keywords of the model, of any source.

    Raises:
        ValueError: A keyword is of a wrong type or size, or the weights do not fit; names them.
    """
    try_to_build(state, build, keywords)
    return build(keywords)


def try_to_build(
    state: Mapping[str, Tensor],
    build: Callable[[Mapping[str, Any]], nn.Module],
    keywords: Mapping[str, Any],
    free: tuple[str, ...] = (),
    spare: int = SPARE,
) -> None:
    """Builds a model on the meta device, and compares it with weights; see `build_for`.

    Args:
        state: See `build_for`.
        build: See `build_for`.
        keywords: See `build_for`.
        free: Name prefixes of weights that may be missing or of other shapes.
        spare: Number of parameters that the model may have in addition.
    """
    check_fits(state, build_on_meta(state, build, keywords, spare), free)


def build_on_meta(
    state: Mapping[str, Tensor],
    build: Callable[[Mapping[str, Any]], Model],
    keywords: Mapping[str, Any],
    spare: int = SPARE,
) -> Model:
    """Builds a model on the meta device, no further than there are weights; see `try_to_build`."""
    check_numbers(keywords, max([MOST, *(size for value in state.values() for size in value.shape)]))
    try:
        with torch.device("meta"), _NoInitialization(), _Limit(state, spare):
            model = build(keywords)
    except (ValueError, ModuleNotFoundError):
        raise
    except Exception as error:  # whatever constructors raise for keywords of wrong types or sizes
        reason = str(error).splitlines()[0] if str(error) else "no message"
        raise ValueError(f"the keywords describe no model: {type(error).__name__}: {reason}") from error
    for part in (model, getattr(model, "net", None)):  # of a task's model around a public network
        check_types(type(part), keywords)
    _check_steps(model)
    return model


def _check_steps(model: nn.Module) -> None:
    """Raises a ValueError for convolutions and poolings that cannot move; torch would notice in the forward pass."""
    for name, layer in model.named_modules():
        for key in ("stride", "kernel_size", "dilation"):
            value = getattr(layer, key, 1)
            values = value if isinstance(value, tuple) else (value,)
            if any(isinstance(step, int) and step < 1 for step in values):
                raise ValueError(f"{name}: expected a {key} of at least 1, found {value}")


def check_numbers(keywords: Any, most: int, name: str = "") -> None:
    """Raises a ValueError for integers below 0 or above `most`, and numbers that are not finite, at any depth."""
    if isinstance(keywords, (int, float)) and not 0 <= keywords <= most:
        raise ValueError(f"{name.strip('.')}: expected a number from 0 to {most:,}, found {keywords!r:.40}")
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(keywords, Mapping):
        parts = keywords.items()
    elif isinstance(keywords, (list, tuple)):
        parts = enumerate(keywords)
    for key, value in parts:
        check_numbers(value, most, f"{name}.{key}")


def check_types(kind: Any, keywords: Mapping[str, Any]) -> None:
    """Raises a ValueError for keywords that are not of the types that a constructor declares."""
    for key, hint in get_type_hints(kind.__init__).items():
        if key in keywords and not _is_a(keywords[key], hint):
            wanted = str(getattr(hint, "__name__", hint)).replace("typing.", "").replace("collections.abc.", "")
            raise ValueError(f"{key}: expected {wanted}, found {keywords[key]!r:.40}")


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value of a JSON file is of a declared type."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_is_a(value, one) for one in inner)
    if kind is Literal:
        return value in inner
    if hint in (int, float):
        return (type(value) is int and abs(value) < 1 << 63) or (hint is float and isinstance(value, float))
    if kind in (tuple, list, Sequence):
        return isinstance(value, (tuple, list)) and (not inner or all(_is_a(one, inner[0]) for one in value))
    return hint is Any or isinstance(value, kind or hint)


def check_fits(state: Mapping[str, Tensor], model: nn.Module, free: tuple[str, ...] = ()) -> None:
    """Compares the names, shapes and types of weights with a model's; tied weights have their first name alone.

    Raises:
        ValueError: Weights are missing, unexpected, of another shape, or integers; names them.
    """
    tied = tied_names(model)
    own = {name: value for name, value in model.state_dict().items() if name not in tied}
    problems = [f"missing {name}" for name in own if name not in state and not name.startswith(free)]
    problems += [f"left over {name}" for name in state if name not in own and name not in tied]
    for name, wanted in own.items():
        given = state.get(name, wanted)
        if name.startswith(free):
            continue
        if given.shape != wanted.shape:
            problems.append(f"{name} is {tuple(given.shape)}, the model's {tuple(wanted.shape)}")
        elif given.is_floating_point() != wanted.is_floating_point():
            problems.append(f"{name} is {given.dtype}, the model's {wanted.dtype}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"the weights do not fit the model: {'; '.join(problems[:5])}{more}")


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raises a ValueError for weights that are NaN or infinite."""
    for name, value in state.items():
        if value.is_floating_point() and value.numel() and not torch.stack(value.aminmax()).isfinite().all():
            raise ValueError(f"{name}: expected finite weights, found NaN or infinite ones")


def tied_names(model: nn.Module) -> set[str]:
    """Additional names of tied parameters, which are saved and loaded under their first name only."""
    seen: set[int] = set()
    tied = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in seen:
            tied.add(name)
        seen.add(id(value))
    return tied


def assign_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Makes tensors the weights of a model of the meta device, without a copy; tied weights are those of one name.

    Args:
        model: A model whose buffers are all saved.
        state: Weights that fit it, see `check_fits`.
    """
    names: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    model.load_state_dict({name: state[name] for name, *_ in names.values()}, strict=False, assign=True)
    for first, *others in names.values():
        for name in others:
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, model.get_parameter(first))


class _NoInitialization(TorchFunctionMode):
    """Leaves tensors as they are: on the meta device, random numbers would import torch's compiler, for seconds."""

    IN_PLACE = (torch.Tensor.normal_, torch.Tensor.uniform_)
    SCALED = (torch.Tensor.mul, torch.Tensor.__rmul__)  # random numbers by a constant

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rand, torch.randn):
            return torch.empty(*args, **{name: value for name, value in kwargs.items() if name != "generator"})
        if func in self.IN_PLACE or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        if func in self.SCALED and isinstance(args[1], (int, float)):
            return args[0]
        return func(*args, **kwargs)


class _Limit:
    """While a model is built in this thread, counts its parameters and the elements of its buffers."""

    def __init__(self, state: Mapping[str, Tensor], spare: int) -> None:
        self.parameters = 2 * len(state) + spare
        self.elements = sum(value.numel() for value in state.values()) + BUFFERS

    def __enter__(self) -> None:
        self.thread = threading.get_ident()
        self.handles = [
            hooks.register_module_parameter_registration_hook(self._add_parameter),
            hooks.register_module_buffer_registration_hook(self._add_buffer),
        ]

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _add_parameter(self, module: nn.Module, name: str, value: Tensor) -> None:
        if threading.get_ident() == self.thread:
            self.parameters -= 1
            if self.parameters < 0:
                raise ValueError("the keywords describe a model of more layers than there are weights")

    def _add_buffer(self, module: nn.Module, name: str, value: Tensor | None) -> None:
        if threading.get_ident() == self.thread and value is not None:
            self.elements -= value.numel()
            if self.elements < 0:
                raise ValueError(f"the keywords describe a table {name!r} of {tuple(value.shape)} numbers")
