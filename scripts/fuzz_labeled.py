"""What scripts/fuzz.py damages of text and video classification, and of text generation; see fuzz_kinds.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_labels(folder: Path) -> None:
    words = ["Ada\tB-person\nlives\tO\n", "in\tO\nNew York\tB-place\n"]
    (folder / "a.conll").write_text("\n".join(words))
    row = "{}\t{}\t_\t{}\t_\t_\t0\troot\t_\t_\n"
    (folder / "a.conllu").write_text(
        row.format(1, "Gö", "VERB") + row.format("1.1", "x", "X") + "\n" + row.format(1, "a", "DET")
    )
    rows = [{"text": "a dog", "labels": ["x", "y"]}, {"text": "Bär", "text_pair": "b", "labels": []}]
    (folder / "several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "one.csv").write_text('text,label\n"a, ""dog""",x\nBär,y\n')


def read_labels(path: Path, folder: Path, on_error: str) -> Any:
    from mmattn.tasks.text_classification.data import TextDataset

    return TextDataset(path, on_error=on_error).fingerprint()


def write_videos(folder: Path) -> None:
    from tests.video_files import film, write

    kinds = {"a.mp4": "libx264", "a.mkv": "libx264", "a.avi": "mpeg4", "a.webm": "libvpx", "a.gif": "gif"}
    for name, codec in kinds.items():
        write(folder / name, film(12), codec, pixels="rgb8" if codec == "gif" else "yuv420p")
    write(folder / "b.mp4", film(12), rotation=90, options={"movflags": "faststart"})


def read_video(path: Path, folder: Path, on_error: str) -> Any:
    from mmattn.data.video.reading import open_video

    with open_video(path) as video:
        return [frame.time for frame in video.frames_at([0.0, 0.45, min(video.seconds, 1e6)])]


def write_corpora(folder: Path) -> None:
    """Documents as text files and rows, and instructions."""
    (folder / "a.txt").write_text("one two\n\nein Hündchen\nfour  five\n", encoding="utf-8")
    (folder / "b.md").write_text("six, seven", encoding="utf-8")
    rows = [{"id": f"{n}", "text": "A dog, barking."} for n in range(3)]
    told = [{"prompt": "Say one:", "response": "one Hündchen"} for _ in range(3)]
    for name, lines in (("texts", rows), ("instructions", told)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (folder / "texts.csv").write_text('id,text\n1,"A dog, barking."\n2,one\n')
    (folder / "instructions.tsv").write_text("prompt\tresponse\nSay one:\tone\nSay two:\ttwo\n")


def read_corpora(path: Path, folder: Path, on_error: str) -> Any:
    """Reads documents or instructions, as files and in parts, and makes the batches of training."""
    from mmattn.tasks.text_generation.corpus import Blocks
    from mmattn.tasks.text_generation.data import TextDataset
    from mmattn.tasks.text_generation.processor import TextGenerationProcessor

    for document in ("file", "paragraph") if path.suffix in (".txt", ".md") else ("file",):
        data = TextDataset(path, document, on_error=on_error)
        processor = TextGenerationProcessor.fit(data, block_size=8)
        blocks = data.samples if data.is_instruction else Blocks(processor.encode_corpus(data), 8)
        batch = processor.collate(blocks[:2])
        assert int(batch.labels.max()) < processor.sizes()["vocab_size"]
    return data.fingerprint()
