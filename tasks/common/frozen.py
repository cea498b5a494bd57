"""Features of frozen encoders, computed once for each image and kept on disk beside the run.

A module with a method `body_features(images)` (`mmattn.backbones.timm.TimmTrunk`) is replaced by a store in training,
if its weights are frozen. Features are found by the content of the image: whatever changes an image computes them anew.
``MMATTN_FEATURES=DIR`` keeps them in a folder, for runs with other seeds or settings, one at a time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

METHOD = "body_features"
KEY = 16  # bytes of a digest
SPARE = 4 * 2**30  # bytes of the disk that stay free
FOLDER = "MMATTN_FEATURES"  # environment variable of a folder in which features stay, for other runs


class FeatureStore:
    """A function of images whose results are kept in a file, in records of a digest and the features.

    The file is appended to; what an interrupted run has written is used by the one that resumes it. If the disk is
    almost full, or another run has added to the file meanwhile, nothing is added.

    Args:
        function: Maps images (N, ...) to features (N, ...), each for itself.
        path: The file.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], path: Path) -> None:
        self.function, self.path = function, path
        self.places: dict[bytes, int] = {}
        self.shape: tuple[int, ...] | None = None  # of the features of an image, known after the first call

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the features of images."""
        rows = map(np.ascontiguousarray, images.cpu().numpy())
        keys = [hashlib.blake2b(row.data, digest_size=KEY).digest() for row in rows]
        if self.shape is None:
            self._open(self._compute(images[:1]).shape[1:])
        new = {key: n for n, key in enumerate(keys) if key not in self.places}
        if new:
            others = self.path.stat().st_size != len(self.places) * self._record.itemsize  # another run's
            if others or shutil.disk_usage(self.path.parent).free < SPARE:
                return self._compute(images)
            self._append(list(new), self._compute(images[list(new.values())]))
        values = np.memmap(self.path, self._record, mode="r")["value"]
        found = np.stack([values[self.places[key]] for key in keys])
        return torch.from_numpy(found).to(images.device)

    def _compute(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.function(images).float()

    @property
    def _record(self) -> np.dtype:
        return np.dtype([("key", f"V{KEY}"), ("value", np.float32, self.shape)])

    def _open(self, shape: tuple[int, ...]) -> None:
        """Reads the digests of an existing file, and cuts a record that was not written to its end."""
        self.shape = tuple(shape)
        self.path.touch()
        size = self._record.itemsize
        count = self.path.stat().st_size // size
        with self.path.open("r+b") as file:
            file.truncate(count * size)
        if count:
            keys = np.memmap(self.path, self._record, mode="r")["key"]
            self.places = {bytes(key): n for n, key in enumerate(keys)}

    def _append(self, keys: list[bytes], values: Tensor) -> None:
        rows = np.empty(len(keys), self._record)
        rows["key"], rows["value"] = np.array(keys, f"V{KEY}"), values.cpu().numpy()
        with self.path.open("ab") as file:
            file.write(rows.tobytes())
        self.places |= {key: len(self.places) + n for n, key in enumerate(keys)}


def keep_features(model: nn.Module, root: Path, rank: int = 0) -> list[FeatureStore]:
    """Replaces `body_features` of the model's frozen encoders by a `FeatureStore`; returns these.

    Args:
        model: The model, whose frozen modules are in evaluation mode.
        root: The run directory.
        rank: Number of the process, each of which has its own files.
    """
    stores, root = [], Path(os.environ.get(FOLDER) or root)
    root.mkdir(parents=True, exist_ok=True)
    for module in model.modules():
        function = getattr(module, METHOD, None)
        body = getattr(module, "body", None)
        if function is None or not isinstance(body, nn.Module):
            continue
        if any(p.requires_grad for p in body.parameters()) or any(part.training for part in body.modules()):
            continue
        digest = hashlib.blake2b(digest_size=8)
        for key, value in body.state_dict().items():
            digest.update(key.encode() + value.detach().float().cpu().numpy().tobytes())
        path = root / f"features_{digest.hexdigest()}_{rank}.bin"
        stores.append(FeatureStore(function, path))
        setattr(module, METHOD, stores[-1])
    return stores


def discard_features(model: nn.Module, stores: list[FeatureStore]) -> None:
    """Gives the encoders their own method back, and deletes the files, unless they are in the user's folder."""
    for module in model.modules():
        module.__dict__.pop(METHOD, None)
    for store in stores if not os.environ.get(FOLDER) else ():
        store.path.unlink(missing_ok=True)
