"""Read mutants of every kind of file: each must end in a value, or in one error that names the file.

    python scripts/fuzz.py audio --count 2000 --seed 1
    python scripts/fuzz.py all --count 1500
    python scripts/fuzz.py audio --seed 1 --only 17       # one mutant again, with its traceback

Mutants have flipped, missing, additional, repeated and swapped bytes, huge numbers and, where a file has a structure,
values of wrong types. A fault is any other exception, more than ten seconds, a gigabyte of memory, or a crash. Each
fault is printed with its index; a mutant is a function of kind, seed and index.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
from scripts.fuzz_kinds import KINDS, Kind  # noqa: E402

SECONDS, START = 10, 120  # limits of a mutant, and of the start of a worker
MEMORY, GUARD = 10**9, 4 << 30  # bytes: limit of a mutant; address space of a worker beyond that of its start

# Mutants --------------------------------------------------------------------------------------------------------------

DEEP, DIGITS = "@deep@", "@digits@"  # stand for what json.dumps cannot write
WRONG: tuple[Any, ...] = (None, True, -1, 0, 3, 1.5, 10**9, -(10**9), 2**63, 1e308, float("nan"), float("inf"), "", "x")
WRONG += ("\ud800", "../x", "a" * 3000, [], {}, [[]], [None], {"a": 1}, [1, "a"], DEEP, DIGITS)
TOKENS = (
    b'"',
    b"\t",
    b",",
    b"\0",
    b"\r",
    b"\n",
    b"|",
    b"{",
    b"[[",
    b"}",
    b": ",
    b"&a *a",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
)
TOKENS += (b"9" * 400, b"NaN", b"\xc3", b"\xe2\x80\x8b", b"!!python/object/apply:os.system", b"a" * 200_000)
EXTREMES = (b"\0", b"\xff", b"\x7f\xff", b"\xff\x7f", b"\x80\0", b"\0\x80", b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff")
EXTREMES += (b"\0" * 4, b"\xff" * 4, b"\0\0\xff\x7f", b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 8, b"\0\0\1\0")
NUMBERS = (b"0", b"-1", b"1e999", b"2147483648", b"9" * 30)


def changed(rng: random.Random, content: bytes, ending: str) -> bytes:
    """Changes the content of a file once to three times; its ending tells the structure."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            structured = rng.random() < 0.6
            content = _changed_structure(rng, content, ending) if structured else _changed_bytes(rng, content)
        except (ValueError, RecursionError):  # it has no structure, or none any more
            content = _changed_bytes(rng, content)
    return content


def _changed_structure(rng: random.Random, content: bytes, ending: str) -> bytes:
    if ending == ".safetensors":
        end = 8 + int.from_bytes(content[:8], "little")
        header = _changed_structure(rng, content[8:end], ".json")
        return len(header).to_bytes(8, "little") + header + content[end:]
    if ending == ".jsonl":
        lines = content.split(b"\n")
        at = rng.randrange(len(lines))
        lines[at] = _changed_structure(rng, lines[at], ".json")
        return b"\n".join(lines)
    if ending == ".yaml":
        import yaml

        try:
            value = yaml.safe_load(content)
        except yaml.YAMLError as error:
            raise ValueError(error) from None
    else:
        value = json.loads(content)  # no JSON: ValueError
    text = json.dumps(_changed_value(rng, value))  # JSON is YAML
    text = text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000)
    return text.replace(f'"{DIGITS}"', "9" * 5000).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields each list and dict in a value, with each of its keys."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _changed_value(rng: random.Random, value: Any) -> Any:
    places = list(_places(value))
    if not places:
        raise ValueError("nothing to change")
    parent, key = rng.choice(places)
    action = rng.randrange(6)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[rng.choice(("", "x", f"{key}_", str(key).upper()))] = parent[key]
    elif action == 1:
        parent[key:key] = [parent[key]] * rng.choice((1, 3, 1000))
    elif action == 2 and type(parent[key]) in (int, float):
        parent[key] = rng.choice((-parent[key], parent[key] + 1, parent[key] * 1000, parent[key] / 3))
    elif action == 2:
        other, place = rng.choice(places)
        parent[key] = json.loads(json.dumps(other[place]))
    else:
        parent[key] = rng.choice(WRONG)
    return value


def _changed_bytes(rng: random.Random, content: bytes) -> bytes:
    size = len(content)
    at = rng.randrange(min(size, 128) + 1 if rng.random() < 0.5 else size + 1)  # headers break more often than samples
    length = min(rng.choice((1, 2, 4, 16, 100, 1000, 10_000)), size - at)
    before, block, after = content[:at], content[at : at + length], content[at + length :]
    match rng.randrange(9):
        case 0:
            flipped = bytearray(content)
            for _ in range(rng.choice((1, 1, 2, 8, 64)) if size else 0):
                flipped[min(at + int(rng.expovariate(1 / 30)), size - 1)] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case 1:
            return content[: rng.choice((at, size // 2, max(size - length, 0), 0))]
        case 2:
            return before + rng.choice((rng.randbytes(length or 1), *TOKENS)) + block + after
        case 3:
            return before + block * rng.choice((2, 3, 50)) + after
        case 4:
            place = rng.randrange(len(after) + 1)
            return before + after[place : place + length] + after[:place] + block + after[place + length :]
        case 5:
            value = rng.choice(EXTREMES)
            return before + value + content[at + len(value) :]
        case 6 if numbers := [*re.finditer(rb"\d+", content[:20_000])]:
            begin, end = rng.choice(numbers).span()
            return content[:begin] + rng.choice(NUMBERS) + content[end:]
        case 7:
            return before + bytes(length) + after
    return before + after


class Mutant(NamedTuple):
    """A changed file."""

    path: Path
    whole: bytes
    content: bytes
    on_error: str

    @classmethod
    def make(cls, kind: Kind, seed: int, index: int, folder: Path) -> Mutant:
        """The mutant of an index, from a folder of whole files."""
        rng = random.Random(f"{kind.name} {seed} {index}")
        path = rng.choice(kind.files(folder))
        whole = path.read_bytes()
        return cls(path, whole, changed(rng, whole, path.suffix), rng.choice(("raise", "raise", "skip")))


# Workers --------------------------------------------------------------------------------------------------------------


def outcome(kind: Kind, folder: Path, mutant: Mutant, shown: bool = False) -> str:
    """Reads a mutant; returns "value", "error", or the description of a fault."""
    from mmattn.data.errors import UserError

    Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far becomes the present one
    before = _memory("VmRSS")
    mutant.path.write_bytes(mutant.content)
    try:
        with open(os.devnull, "w") as null, redirect_stdout(null):
            kind.read(mutant.path, folder, mutant.on_error)
        result = "value"
    except UserError as error:
        named = mutant.path.name in str(error) or str(folder) in str(error) or not kind.is_named
        result = "error" if named else f"an error that does not name the file: {error}"
    except BaseException as error:  # the panic of a library in Rust is no Exception
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(ROOT))]
        result = f"{type(error).__name__}: {error} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"
        if shown:
            traceback.print_exc()
    finally:
        mutant.path.write_bytes(mutant.whole)
    growth = _memory("VmHWM") - before
    return f"{growth / 1e9:.1f} GB of memory, then: {result}" if growth > MEMORY else result


def _memory(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def work(pipe: Any, kind: Kind, seed: int, made: Path, folder: Path, shown: bool) -> None:
    """The loop of a worker process, which receives an index and sends the outcome."""
    import logging
    import warnings

    logging.disable()
    warnings.simplefilter("ignore")
    if not shown:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C print warnings about damaged files
    shutil.copytree(made, folder)
    with open(os.devnull, "w") as null, redirect_stdout(null):
        for path in {path.parent: path for path in kind.files(folder)}.values():
            kind.read(path, folder, "raise")  # whole; imports what is needed
    space = _memory("VmSize") + GUARD
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    pipe.send(None)
    while True:
        pipe.send(outcome(kind, folder, Mutant.make(kind, seed, pipe.recv(), folder), shown))


class Worker:
    """A process that reads one mutant after the other, and is replaced when it dies or takes too long."""

    def __init__(self, scratch: Path, *task: Any) -> None:
        self.scratch, self.task, self.process = scratch, task, None

    def __call__(self, index: int) -> tuple[int, str]:
        if self.process is None:
            self.start()
        self.pipe.send(index)
        try:
            if self.pipe.poll(SECONDS):
                return index, self.pipe.recv()
            result = f"more than {SECONDS} s"
        except EOFError:
            self.process.join()
            result = f"the process died, exit code {self.process.exitcode}"
        self.stop()
        return index, result

    def start(self) -> None:
        kind, seed, made, shown = self.task
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        folder = Path(tempfile.mkdtemp(dir=self.scratch)) / "files"
        self.process = context.Process(target=work, args=(other, kind, seed, made, folder, shown), daemon=True)
        self.process.start()
        other.close()
        if not self.pipe.poll(START):
            raise TimeoutError(f"{kind.name}: the whole files are not read in {START} s")
        self.pipe.recv()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def fuzz(kind: Kind, seed: int, indices: range, scratch: Path, workers: int, shown: bool) -> Iterator[tuple[int, str]]:
    """Yields index and outcome of each mutant, in any order."""
    made = scratch / kind.folder
    if not made.exists():
        made.mkdir()
        kind.make(made)
    free = [Worker(scratch, kind, seed, made, shown) for _ in range(min(workers, len(indices)))]

    def one(index: int) -> tuple[int, str]:
        worker = free.pop()
        try:
            return worker(index)
        finally:
            free.append(worker)

    try:
        with ThreadPool(len(free)) as pool:
            yield from pool.imap_unordered(one, indices)
    finally:
        for worker in free:
            worker.stop()


def main() -> int:
    """Fuzz the kinds of the command line; returns the exit status."""
    from mmattn.tasks.common.progress import progress

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="+", choices=[*(kind.name for kind in KINDS), "all"])
    parser.add_argument("--count", type=int, default=1000, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="index of the only mutant")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    shown = options.only is not None
    indices = range(options.only, options.only + 1) if shown else range(options.count)
    total = 0
    with tempfile.TemporaryDirectory() as scratch:
        for kind in (kind for kind in KINDS if {kind.name, "all"} & {*options.kind}):
            counts: Counter[str] = Counter()
            found = fuzz(kind, options.seed, indices, Path(scratch), options.workers, shown)
            for index, result in progress(found, len(indices), kind.name):
                counts[result if result in ("value", "error") else "fault"] += 1
                if result not in ("value", "error"):
                    print(
                        f"{kind.name} --seed {options.seed} --only {index}: {' '.join(result.split())[:300]}",
                        flush=True,
                    )
            line = ", ".join(f"{counts[name]:,} {name}s" for name in ("value", "error", "fault"))
            print(f"{kind.name}: {line}", flush=True)
            total += counts["fault"]
    return min(total, 1)


if __name__ == "__main__":
    sys.exit(main())
