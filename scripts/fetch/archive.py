"""Download, conversion and verification of public data sets. It imports the standard library alone.

A source is a public GitHub repository at a fixed commit. Its archive is downloaded and converted in a temporary folder
beside the target, the result is compared with known checksums, and the folder is renamed, so that a data set is never
incomplete. ``sources.json`` lists origin and licence of each set; none of them is part of this project.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmattn.data.errors import UserError

FOLDER = Path(__file__).parent
BASE_URL = "https://codeload.github.com"
STALE_SECONDS = 3600  # leftovers of interrupted runs are removed if they are older


class FetchError(UserError):
    """A data set could not be fetched; the message is one line."""


class Archive:
    """The downloaded archive of a repository."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def files(self, pattern: str) -> Iterator[tuple[str, bytes]]:
        """The files whose whole path inside the repository matches the regular expression, in archive order."""
        wanted = re.compile(pattern)
        try:
            with tarfile.open(self.path, "r:gz") as tar:
                for member in tar:
                    name = member.name.partition("/")[2]  # without the folder REPOSITORY-COMMIT
                    stream = tar.extractfile(member) if member.isfile() and wanted.fullmatch(name) else None
                    if stream is not None:
                        yield name, stream.read()
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise FetchError(f"the downloaded archive is damaged ({error}); try again") from None

    def text(self, pattern: str) -> str:
        """The only text file that matches."""
        found = list(self.files(pattern))
        if len(found) != 1:
            raise FetchError(f"the archive has {len(found)} files that match {pattern}, expected one")
        return found[0][1].decode("utf-8")


@dataclass(frozen=True)
class Source:
    """The origin of a data set, its conversion, and the checksums of the result."""

    name: str
    repository: str  # owner/name on GitHub
    commit: str
    licence: str
    megabytes: int  # approximate download size
    convert: Callable[..., None]  # (archive, folder, archives of the others): writes the data set's folder
    sha256: dict[str, str] = field(default_factory=dict)  # of converted files; of a folder, "images/", the listing
    digests: dict[str, Callable[[Path], str]] = field(default_factory=dict)  # functions used instead of `digest`
    others: dict[str, str] = field(default_factory=dict)  # other repositories that have a part of it, and their commits

    def urls(self, base_url: str) -> list[str]:
        """URLs of the archives."""
        commits = {self.repository: self.commit, **self.others}
        return [f"{base_url.rstrip('/')}/{name}/tar.gz/{commit}" for name, commit in commits.items()]


def sources() -> dict[str, Source]:
    """The table of data sets, by name."""
    from scripts.fetch import asr, captioning, detection, images, labels, qa, text, video, vqa

    converters = {
        "easy_vqa": vqa.convert_easy_vqa,
        "daquar": vqa.convert_daquar,
        "multi30k_en_de": text.convert_multi30k,
        "aeslc": text.convert_aeslc,
        "scitldr_a": text.convert_scitldr,
        "tinyshakespeare": text.convert_tinyshakespeare,
        "ptb": text.convert_ptb,
        "cifar10": images.convert_cifar10,
        "camvid": images.convert_camvid,
        "fsdd": asr.convert_fsdd,
        "qamr": qa.convert_qamr,
        "tweetqa_span": qa.convert_tweetqa,
        "xquad_en": qa.convert_xquad,
        "bccd": detection.convert_bccd,
        "fruits": detection.convert_fruits,
        "flickr8k": captioning.convert_flickr8k,
        "sst2": labels.convert_sst2,
        "trec6": labels.convert_trec6,
        "sick": labels.convert_sick,
        "stsb": labels.convert_stsb,
        "agnews_8k": labels.convert_agnews,
        "goemotions": labels.convert_goemotions,
        "wnut17": labels.convert_wnut17,
        "ewt_pos": labels.convert_ewt,
        "surv_fight": video.convert_surv_fight,
    }
    digests = {
        "cifar10": dict.fromkeys(("train.tar", "val.tar"), images.tar_digest),
        "camvid": dict.fromkeys(("train/masks/", "val/masks/"), images.masks_digest),
        "fsdd": {"audio/": asr.samples_digest},
    }
    table = json.loads((FOLDER / "sources.json").read_text(encoding="utf-8"))
    return {
        name: Source(name, convert=convert, digests=digests.get(name, {}), **table[name])
        for name, convert in converters.items()
    }


def validation(name: str) -> Any:
    """The numbers of the validation samples of a set without an official validation split; they were drawn once."""
    return json.loads((FOLDER / "validation" / f"{name}.json").read_text(encoding="utf-8"))


def fetch(
    source: Source,
    out: str | Path,
    base_url: str = BASE_URL,
    accept_changed: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Download a data set into ``out/NAME``.

    Args:
        source: The data set.
        out: Folder of data sets; created if missing.
        base_url: URL of the server, or of a mirror.
        accept_changed: Keep the result even if a checksum differs; differences are reported.
        report: Function that is called with progress lines.

    Returns:
        The folder ``out/NAME``; if it was fetched before, it is verified and left unchanged.

    Raises:
        FetchError: The machine is offline; the archive is missing, interrupted, damaged or changed; the disk is full;
            or the target is a foreign folder. Temporary files are removed, existing files are unchanged.
    """
    target = Path(out) / source.name
    if target.exists() or target.is_symlink():
        return _existing(source, target, report)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(source, target.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{source.name}.", suffix=".fetching", dir=target.parent))
        temporary.chmod(0o755)
        folder, archives = temporary / source.name, list[Archive]()
        report(f"{source.name}: {source.repository} at {source.commit[:10]}, licence: {source.licence}")
        for number, url in enumerate(source.urls(base_url)):
            archives.append(Archive(temporary / f"archive{number}.tar.gz"))
            _download(url, archives[-1].path, source.megabytes, report)
        report(f"{source.name}: converting")
        folder.mkdir()
        source.convert(archives[0], folder, *archives[1:])
        changed = _differences(source, folder)
        if changed and not accept_changed:
            raise FetchError(f"{source.name}: not the expected content: {'; '.join(changed)}")
        for line in changed:
            report(f"{source.name}: accepted although changed: {line}")
        note: dict[str, object] = {"name": source.name, "repository": source.repository, "commit": source.commit}
        note |= {"licence": source.licence, "as_expected": not changed}
        (folder / "SOURCE.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        os.rename(folder, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            need = f"about {3 * source.megabytes} MB are needed"
            raise FetchError(f"{source.name}: the disk of {target.parent} is full; {need}") from None
        raise FetchError(f"{source.name}: cannot write {target.parent}: {error}") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    report(f"{source.name}: {target}")
    return target


def _existing(source: Source, target: Path, report: Callable[[str], None]) -> Path:
    try:
        changed = _differences(source, target)
        note = json.loads((target / "SOURCE.json").read_text("utf-8")) if (target / "SOURCE.json").exists() else {}
    except (OSError, ValueError) as error:
        changed, note = [str(error)], {}
    if changed and note.get("as_expected", True):
        advice = "move it away, or choose another --out"
        raise FetchError(f"{target} exists and is not {source.name} as this program makes it ({changed[0]}): {advice}")
    report(f"{source.name}: already in {target}")
    return target


def _remove_stale(source: Source, folder: Path) -> None:
    for leftover in folder.glob(f".{source.name}.*.fetching"):
        if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)


def _download(url: str, path: Path, megabytes: int, report: Callable[[str], None]) -> None:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mmattn-fetch"})
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        hint = " (the repository or the commit is gone)" if error.code == 404 else ""
        raise FetchError(f"{url}: the server answers {error.code} {error.reason}{hint}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise FetchError(f"{url}: no connection ({reason}); is this machine offline?") from None
    with answer, path.open("wb") as file:
        length = answer.headers.get("Content-Length")
        total = int(length) if length else None
        done, reported = 0, time.monotonic()
        while block := _receive(answer, url, done):
            file.write(block)
            done += len(block)
            if time.monotonic() - reported > 5:
                reported = time.monotonic()
                report(f"  {done / 1e6:.0f} MB of {total / 1e6 if total else megabytes:.0f} MB")
    if total is not None and done != total:
        raise FetchError(f"{url}: the connection ended after {done:,} of {total:,} bytes; try again")


def _receive(answer: http.client.HTTPResponse, url: str, done: int) -> bytes:
    try:
        return answer.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:  # separate from write errors, such as a full disk
        raise FetchError(f"{url}: the connection ended after {done:,} bytes ({error}); try again") from None


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, of its sorted file names."""
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("test_"))
        return hashlib.sha256("\n".join(names).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _differences(source: Source, folder: Path) -> list[str]:
    lines = []
    for name, expected in source.sha256.items():
        path = folder / name
        found = source.digests.get(name, digest)(path) if path.exists() else "missing"
        if found != expected:
            lines.append(f"{name} has sha256 {found[:12]}, expected {expected[:12]}" if path.exists() else f"no {name}")
    return lines
