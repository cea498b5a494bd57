"""Tiny trainings for the tests, in this process."""

from pathlib import Path
from typing import Any

from mmattn.tasks.common import cli

# Small enough that an epoch takes a fraction of a second.
TINY = (
    "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.limit_val_batches 2 --trainer.limit_test_batches 2 "
    "--trainer.enable_progress_bar false --data.scenes 12 --data.batch_size 36 "
    "--model.embed_dim 16 --model.num_heads 2 --model.ffn_dim 32 --model.fusion_layers 1"
)

# By task; what writes text has batches by tokens.
TINIES = {
    "vqa": TINY,
    "translation": "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.limit_val_batches 1 "
    "--trainer.limit_test_batches 1 --trainer.enable_progress_bar false --data.pairs 60 --data.vocab_size 300 "
    "--data.max_tokens 400 --data.max_target_len 20 --data.batch_size 8 --model.embed_dim 16 --model.num_heads 2 "
    "--model.ffn_dim 16 --model.encoder_layers 1 --model.decoder_layers 1",
    "summarization": "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.limit_val_batches 1 "
    "--trainer.limit_test_batches 1 --trainer.enable_progress_bar false --data.documents 40 --data.vocab_size 300 "
    "--data.max_tokens 2000 --data.batch_size 4 --model.embed_dim 16 --model.num_heads 2 --model.ffn_dim 16 "
    "--model.encoder_layers 1 --model.decoder_layers 1 --model.num_beams 1",
    "segmentation": "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.limit_val_batches 2 "
    "--trainer.limit_test_batches 2 --trainer.enable_progress_bar false --data.scenes 16 --data.batch_size 8 "
    "--model.channels [6,8]",
    "asr": "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.limit_val_batches 1 "
    "--trainer.limit_test_batches 1 --trainer.enable_progress_bar false --data.clips 24 --data.batch_size 8 "
    "--data.max_frames 1200 --model.embed_dim 16 --model.num_heads 2 --model.ffn_dim 16 --model.encoder_layers 1 "
    "--model.num_beams 1",
    "classification": "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.limit_val_batches 2 "
    "--trainer.limit_test_batches 2 --trainer.enable_progress_bar false --data.pictures 36 --data.batch_size 12 "
    "--model.channels [8,12] --model.embed_dim 16 --model.num_heads 2 --model.num_queries 2",
}


def run(command: str, folder: Path, options: str = "", base: str | None = None, task: str = "vqa") -> Path:
    """Run `python -m tasks.TASK COMMAND` with tiny settings; later options override."""
    base = TINIES[task] if base is None else base
    given = {word.split("=")[0] for word in options.split() if word.startswith("--")}
    words = base.split()
    kept = [w for n in range(0, len(words), 2) if words[n] not in given for w in words[n : n + 2]]
    if command != "fit":
        kept = [w for n in range(0, len(kept), 2) if not kept[n].startswith("--model") for w in kept[n : n + 2]]
    cli.run(task, command, [*kept, *options.split(), "--trainer.default_root_dir", str(folder)])
    return folder


def read(path: Path) -> Any:
    """A JSON file."""
    import json

    return json.loads(path.read_text(encoding="utf-8"))
