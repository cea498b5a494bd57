"""Construction of objects, such as augmentations, from the keywords in a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mmattn.data.errors import ConfigError, nearest

T = TypeVar("T")


def from_options(kind: Callable[..., T], options: Mapping[str, Any] | None, key: str) -> T | None:
    """Constructs an object from a mapping of keywords; returns None for an empty mapping or None.

    Args:
        kind: The class, or a callable that takes keywords.
        options: Keywords and their values.
        key: Configuration key of the mapping, for messages.

    Raises:
        ConfigError: An unknown option, reported with the nearest known one; or an invalid value.

    >>> from_options(complex, {"imga": 1}, "factor")
    Traceback (most recent call last):
    mmattn.data.errors.ConfigError: factor.imga: unknown option (did you mean 'imag'?); expected one of: real, imag
    """
    if not options:
        return None
    known = list(inspect.signature(kind).parameters)
    wrong = next((name for name in options if name not in known), None)
    if wrong is not None:
        raise ConfigError(f"{key}.{wrong}: unknown option{nearest(wrong, known)}; expected one of: {', '.join(known)}")
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}.{error}") from None
