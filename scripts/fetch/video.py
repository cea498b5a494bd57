"""The public video set of ``scripts/fetch_data.py``: class folders of small clips for training, validation and test.

The repository has no split. Whole source videos are on one side each; the names of the clips for training and
validation are in ``validation/surv_fight.json``, and all others are for the test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scripts.fetch.archive import Archive, FetchError, validation

SIDE, RATE = 192, 15  # of the clips: pixels of the longer side, frames per second


def convert_surv_fight(archive: Archive, folder: Path) -> None:
    """Write ``PART/CLASS/NAME.mp4``, smaller and without sound."""
    parts = {name: part for part, names in validation("surv_fight").items() for name in names}
    found: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for path, content in archive.files(r"(?:[^/]+/)*(?:no)?fi\d+\.mp4"):
        name = Path(path).stem
        part = parts.get(name, "test")
        label = "nofight" if name.startswith("no") else "fight"
        target = folder / part / label / f"{name}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_small(content, target, path)
        found[part].add(name)
    missing = sorted(name for name, part in parts.items() if name not in found[part])
    if missing or not found["test"]:
        what = f"clips such as {missing[0]}" if missing else "clips of the test"
        raise FetchError(f"surv_fight: the archive has no {what}")


def write_small(content: bytes, target: Path, name: str) -> None:
    """Encode a video at 15 frames a second, its longer side 192 pixels, without sound (H.264).

    Raises:
        FetchError: PyAV is not installed, or the video is damaged.
    """
    try:
        import av
    except ModuleNotFoundError:
        raise FetchError("surv_fight: its conversion needs PyAV: pip install 'mmattn[video]'") from None
    from PIL import Image

    from mmattn.data.errors import DataError
    from mmattn.data.video.reading import open_video

    try:
        with open_video(content, name) as video, av.open(str(target), "w") as container:
            scale = min(SIDE / max(video.size), 1.0)
            width, height = (max(round(side * scale / 2) * 2, 2) for side in video.size)
            stream: Any = container.add_stream("libx264", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            count = max(round(video.seconds * RATE), 1)
            for frame in video.frames_at((n + 0.5) / RATE for n in range(count)):
                small = Image.fromarray(frame.pixels).resize((width, height), Image.Resampling.BILINEAR)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(small), format="rgb24")))
            container.mux(stream.encode())
    except DataError as error:
        raise FetchError(f"surv_fight: {error}") from None
