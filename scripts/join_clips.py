"""Concatenate recordings of a speaker to longer ones, with the true word boundaries.

    python scripts/join_clips.py $MMATTN_DATA/fsdd/val.jsonl runs/strings --count 300 --words 3 7 --seed 0
    python scripts/join_clips.py $MMATTN_DATA/fsdd/val.jsonl runs/long --count 1 --words 2500 2500

Writes `OUT/audio/*.flac` and `OUT/manifest.jsonl`, whose `words` are [[word, start, end], ...] in seconds: the `words`
of a clip, or, without them, its text from start to end. Pauses between clips are silent, 0 to --pause seconds long. The
same arguments give the same samples.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmattn.data.errors import DataError  # noqa: E402
from mmattn.tasks.asr.augment import join_waves  # noqa: E402
from mmattn.tasks.asr.data import ASRDataset, ASRSample  # noqa: E402


def choose(samples: list[ASRSample], words: tuple[int, int], seed: int, number: int) -> list[ASRSample]:
    """The clips of string ``number``: a random speaker and random clips of it, without repetition while possible."""
    stream = random.Random(f"{seed} {number}")
    speakers = sorted({sample.speaker for sample in samples})
    speaker = speakers[int(stream.random() * len(speakers))]
    own = [sample for sample in samples if sample.speaker == speaker]
    left: list[ASRSample] = []
    chosen = []
    for _ in range(words[0] + int(stream.random() * (words[1] - words[0] + 1))):
        left = left or list(own)
        chosen.append(left.pop(int(stream.random() * len(left))))
    return chosen


def words_of(sample: ASRSample, seconds: float) -> list[tuple[str, float, float]]:
    """A clip's words with their boundaries; without them, its text from start to end."""
    return sample.words or ([(sample.text, 0.0, seconds)] if sample.text.strip() else [])


def write(dataset: ASRDataset, folder: Path, options: argparse.Namespace) -> None:
    """Write the strings and their manifest into an empty folder."""
    import soundfile

    (folder / "audio").mkdir()
    lines = []
    for number in range(options.count):
        chosen = choose(dataset.samples, tuple(options.words), options.seed, number)
        stream = random.Random(f"{options.seed} {number} pauses")
        pauses = [stream.random() * options.pause for _ in chosen[1:]]
        wave, borders = join_waves([sample.read(options.rate) for sample in chosen], pauses, options.rate)
        name = f"audio/{number:05d}.flac"
        soundfile.write(folder / name, wave.numpy(), options.rate, subtype="PCM_16")
        words = [
            [word, round(start + begin, 4), round(min(start + end, stop), 4)]
            for sample, (start, stop) in zip(chosen, borders, strict=True)
            for word, begin, end in words_of(sample, stop - start)
        ]
        row = {"audio_filepath": name, "duration": round(len(wave) / options.rate, 4)}
        row |= {"text": " ".join(sample.text for sample in chosen if sample.text), "speaker": chosen[0].speaker}
        lines.append(json.dumps(row | {"words": words}, ensure_ascii=False) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("manifest", help="a manifest, CSV or LibriSpeech folder")
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--count", type=int, default=300, help="strings")
    parser.add_argument(
        "--words", type=int, nargs=2, default=[3, 7], metavar=("LEAST", "MOST"), help="clips per string"
    )
    parser.add_argument("--pause", type=float, default=0.3, help="maximum seconds of silence between clips")
    parser.add_argument("--rate", type=int, default=8000, help="sample rate in Hz")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.count < 1 or not 1 <= options.words[0] <= options.words[1] or options.pause < 0:
        parser.error(
            "expected --count of at least 1, --words LEAST MOST with 1 <= LEAST <= MOST, --pause of at least 0"
        )
    if options.out.exists():
        parser.error(f"{options.out} exists already")
    try:
        dataset = ASRDataset(options.manifest)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{options.out.name}.", dir=options.out.parent) as temporary:
            folder = Path(temporary) / "new"
            folder.mkdir()
            write(dataset, folder, options)
            folder.rename(options.out)  # atomic
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.out / 'manifest.jsonl'}: {options.count} strings of clips of {options.manifest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
