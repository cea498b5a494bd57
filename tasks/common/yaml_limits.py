"""Limits of YAML: aliases that multiply without end, and brackets that overflow the parser's stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

DEPTH, VALUES = 100, 100_000  # of a configuration; those of the tasks have about 10 and 100
KIND = "yaml"


def check_yaml(text: str) -> None:
    """Raises a YAMLError for a text whose values, each alias replaced, are too many or nested too deeply."""
    sizes: dict[str | None, int] = {}  # by anchor
    open_: list[list[Any]] = [[None, 0]]  # anchor, and number of values so far, of the collections around an event
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append([event.anchor, 1])
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
            sizes[anchor] = size
        elif isinstance(event, yaml.ScalarEvent):
            size = sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, VALUES + 1)  # an alias within its own anchor has no end
        open_[-1][1] += size
        if open_[-1][1] > VALUES or len(open_) > DEPTH:
            raise yaml.YAMLError(
                f"expected at most {VALUES:,} values, {DEPTH} levels deep, found more at line "
                f"{event.start_mark.line + 1} (each alias counts as what it stands for)"
            )


def load_yaml(text: str) -> Any:
    """Parses YAML as jsonargparse does.

    Raises:
        YAMLError: Invalid YAML, or beyond the limits.
    """
    check_yaml(text)
    try:
        return _load(text)
    except (ValueError, OverflowError) as error:  # an integer of thousands of digits
        raise yaml.YAMLError(str(error)) from None


def recorded_options(path: Path) -> dict[str, Any]:
    """The options of a run's config.yaml, by dotted keys; none if it has not been written."""
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    sections = content.items() if isinstance(content, dict) else ()
    return {
        f"{name}.{key}": value for name, given in sections if isinstance(given, dict) for key, value in given.items()
    }


_load = get_loader(KIND)
set_loader(KIND, load_yaml, (yaml.YAMLError,))
