"""Samples as items of requests: texts as they are, media as data URLs that a browser shows and the server reads."""

from __future__ import annotations

import base64
import io
import json
import mimetypes
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmattn.data.errors import UserError
from mmattn.tasks.common.files import write_json
from mmattn.tasks.common.serving.inputs import item_fields
from mmattn.tasks.common.task import Option, tasks

FILE = "examples.json"  # of a run, and of named models whose data differ from the built-in data
EXAMPLES = 6  # items that the page shows
MOST_BYTES = 4 << 20  # of a file that is shown as an example
MOST_KEPT = 2 << 20  # characters of an item that a run keeps


def write_examples(root: Path, predictor: Any, items: Sequence[Any]) -> None:
    """Keep a few items of a run as requests, in the run and not in its model, which is what is passed on.

    Args:
        root: The run directory.
        predictor: The predictor.
        items: The validation data.
    """
    fields, found = item_fields(tasks()[predictor.task]), list[dict[str, str]]()
    for item in items[:: max(1, len(items) // EXAMPLES)][: 2 * EXAMPLES]:
        made = example_of(predictor, fields, item)
        if made and sum(map(len, made.values())) <= MOST_KEPT and len(found) < EXAMPLES:
            found.append(made)
    write_json(root / FILE, found)


def read_examples(folder: Path) -> list[dict[str, str]]:
    """The items that are kept in a folder, that of a run or of a named model; empty: none are."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def example_of(predictor: Any, fields: Sequence[Option], item: Any) -> dict[str, str] | None:
    """An item as a request; None if it lacks a field, or cannot be shown.

    Args:
        predictor: The predictor, which knows the text of its samples.
        fields: The fields of the task's items.
        item: A sample, a mapping, or a bare input.
    """
    found: dict[str, str] = {}
    for option in fields:
        value = item.get(option.name) if isinstance(item, Mapping) else getattr(item, option.name, None)
        if option.media:
            try:
                found[option.name] = data_url(value, option.name)
            except (UserError, OSError, TypeError, ValueError):
                return None
            continue
        text = value if value is not None or option.optional else predictor.text(item)
        if isinstance(text, str) and text:
            found[option.name] = text
        elif not option.optional:
            return None
    return found


def data_url(value: Any, kind: str) -> str:
    """An image, a recording or a clip as a data URL.

    Args:
        value: A data URL, a path, a file's bytes, a uint8 array (H, W, 3) or (T, H, W, 3), a PIL image, or samples and
            their rate.
        kind: image, audio or video.

    Raises:
        ValueError: It is too large, or of another type.
    """
    if isinstance(value, str) and value.startswith("data:"):
        return value
    if isinstance(value, (str, Path)):
        path = Path(value)
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path}: expected a file of at most {MOST_BYTES:,} bytes.")
        return _url(mimetypes.guess_type(path.name)[0] or f"{kind}/unknown", path.read_bytes())
    if hasattr(value, "read") and not hasattr(value, "shape"):
        value = value.read()
    if isinstance(value, bytes):
        return _url(f"{kind}/unknown", value)
    if kind == "audio":
        samples, rate = value
        return _url("audio/wav", wav_of(np.asarray(samples), int(rate)))
    frames = np.asarray(getattr(value, "frames", value))
    if kind == "video":
        return _url("image/gif", gif_of(frames))
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(frames).save(data, "PNG")
    return _url("image/png", data.getvalue())


def wav_of(samples: np.ndarray, rate: int) -> bytes:
    """A WAV of 16 bits of samples in -1..1."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        file.writeframes((np.asarray(samples).clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    return data.getvalue()


def gif_of(frames: np.ndarray, seconds: float = 0.04) -> bytes:
    """A GIF of frames (T, H, W, 3)."""
    from PIL import Image

    first, *rest = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    data = io.BytesIO()
    first.save(data, "GIF", save_all=True, append_images=rest, duration=round(seconds * 1000), loop=0)
    return data.getvalue()


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
