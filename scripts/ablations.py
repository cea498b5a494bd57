"""Train a task's full model, its failing baselines and other kernels for the same time, and print a table.

    python scripts/ablations.py vqa [--jobs 2] [--write]
    python scripts/ablations.py vqa --kernels --jobs 2 --epochs 4 --write

--kernels trains the full model with each kernel that supports bidirectional self-attention instead, by
`--model.attention.kind`, beside the question alone.
How long an epoch of a variant takes is measured on a few steps first; a cheaper one gets as many more epochs as fit in
the full model's time; with --same-epochs, and of kernels, all have the same number.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CCT = "--model.backbone cct --model.tokenizer_layers 3 --model.lr 0.001"  # over an 8x8 map, as the convolutional net
SEGFORMER = "--model.network segformer --model.channels [32,64,96,128] --model.decoder_channels [96] --model.lr 0.001"
ALONE = "--model.search_ctc_weight 0 --model.num_beams 1"
# For each task: what a variant changes in training, and what in testing.
VARIANTS: dict[str, dict[str, tuple[str, str]]] = {
    "asr": {
        "full": ("", ""),
        "sound hidden": ("--data.hide sound", "--data.hide sound"),
        "mean pooling for attention": ("--model.memory mean", ""),
        "CTC alone": ("--model.decoder none", ""),
        "LSTM, additive attention": ("--model.decoder lstm", ""),
        "transformer encoder": ("--model.encoder transformer", ""),
        "soft attention alone": (ALONE, ""),  # greedy, without CTC: what the next three stand beside
        "LSTM, additive attention alone": (f"--model.decoder lstm {ALONE}", ""),
        "monotonic attention alone": (f"--model.cross_attention.kind monotonic {ALONE}", ""),
        "monotonic chunks alone": (
            f"--model.cross_attention.kind monotonic --model.cross_attention.chunk 4 {ALONE}",
            "",
        ),
        "monotonic attention": ("--model.cross_attention.kind monotonic", ""),
        "streaming": ("--model.chunk_frames 8 --model.left_chunks 4", ""),
    },
    "classification": {
        "full": ("", ""),
        "mean pooling for attention": ("--model.pool mean", ""),
        "patches shuffled": ("--data.hide arrangement", "--data.hide arrangement"),
        "without channel attention": ("--model.channel_attention none", ""),
        "ECA": ("--model.channel_attention eca", ""),
        "CBAM": ("--model.channel_attention cbam", ""),
        "compact convolutional transformer": (CCT, ""),
        "vision transformer": ("--model.backbone vit --model.lr 0.001", ""),
    },
    "segmentation": {
        "full": ("", ""),
        "context hidden": ("--data.hide context", "--data.hide context"),
        "gates removed": ("--model.gates false", ""),
        "without deep supervision": ("--model.deep_supervision false", ""),
        "SegFormer": (SEGFORMER, ""),
    },
    "vqa": {
        "full": ("", ""),
        "without guidance": ("--model.guidance 0 --model.object_supervision 0", ""),
        "question hidden": ("--data.hide question", "--data.hide question"),
        "image hidden": ("--data.hide image", "--data.hide image"),
        "mean pooling for attention": ("--model.fusion mean --model.guidance 0", ""),
    },
    "translation": {
        "full": ("", ""),
        "source hidden": ("--data.hide source", "--data.hide source"),
        "mean pooling for attention": ("--model.memory mean", ""),
        "LSTM, additive attention": ("--model.decoder lstm", ""),
        "LSTM, local attention": ("--model.decoder lstm --model.cross_attention.kind local", ""),
    },
    "summarization": {
        "full": ("", ""),
        "source hidden": ("--data.hide source", "--data.hide source"),
        "mean pooling for attention": ("--model.memory mean --model.copy false --model.salience 0", ""),
        "without copying": ("--model.copy false --model.salience 0", ""),
        "without salience": ("--model.salience 0", ""),
        "words alone": ("--model.hierarchical false", ""),
        "window with global tokens": (
            "--model.hierarchical false --model.global_tokens sentences --model.attention.kind sliding_window "
            "--model.attention.window 8",
            "",
        ),
    },
}
# Options that fit a task's built-in data, where a kernel's defaults are for long sequences.
KERNEL_OPTIONS: dict[str, dict[str, dict[str, int]]] = {
    "asr": {  # clips of about fifty frames
        "adaptive_span": {"max_span": 256, "ramp": 8},
        "low_rank": {"projected_length": 32, "max_len": 512},
        "lsh": {"chunk": 16},
        "sliding_window": {"window": 8},
        "sparse": {"block": 8},
    },
    "classification": {  # 64 cells
        "adaptive_span": {"max_span": 64, "ramp": 8},
        "low_rank": {"projected_length": 16, "max_len": 64},
        "lsh": {"chunk": 16},
        "sliding_window": {"window": 8},
        "sparse": {"block": 8},
    },
    "segmentation": {},  # attention between maps and their reduced keys: dense, or what needs no order
    "vqa": {  # a grid of 64 cells
        "adaptive_span": {"max_span": 64, "ramp": 8},
        "low_rank": {"projected_length": 16, "max_len": 64},
        "lsh": {"chunk": 16},
        "sliding_window": {"window": 8},
        "sparse": {"block": 8},
    },
    "translation": {  # sentences of about twenty tokens
        "adaptive_span": {"max_span": 64, "ramp": 8},
        "low_rank": {"projected_length": 16, "max_len": 64},
        "lsh": {"chunk": 16},
        "sliding_window": {"window": 8},
        "sparse": {"block": 8},
    },
    "summarization": {  # documents of about 180 tokens
        "adaptive_span": {"max_span": 256, "ramp": 8},
        "low_rank": {"projected_length": 32, "max_len": 320},
        "lsh": {"chunk": 16},
        "sliding_window": {"window": 8},
        "sparse": {"block": 8},
    },
}
BASELINE = {
    "asr": "sound hidden",
    "classification": "patches shuffled",
    "segmentation": "context hidden",
    "vqa": "image hidden",
    "translation": "source hidden",
    "summarization": "source hidden",
}  # what every kernel has to beat
KERNEL_BASE = {
    "classification": CCT,
    "segmentation": SEGFORMER,
}  # where the full model has no self-attention to choose a kernel for
PROBE_STEPS = 60


def kernel_variants(task: str) -> dict[str, tuple[str, str]]:
    """The full model with each kernel that it can have, and the baseline that each has to beat."""
    from mmattn import kinds_supporting

    variants = {BASELINE[task]: VARIANTS[task][BASELINE[task]]}
    for kind in kinds_supporting({"self"}):
        options = KERNEL_OPTIONS[task].get(kind, {})
        flags = "".join(f" --model.attention.{name} {value}" for name, value in options.items())
        base = KERNEL_BASE.get(task, "")
        variants[f"attention {kind}"] = (f"{base} --model.attention.kind {kind}{flags}".strip(), "")
    return variants


def run(task: str, arguments: str, threads: int) -> None:
    """One command of a task, its output shown only if it fails."""
    command = [sys.executable, "-m", f"tasks.{task}", *arguments.split()]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])


def fit_command(task: str, changes: str) -> str:
    """The command that trains a variant."""
    return f"fit --config configs/{task}.yaml {changes}".strip()


def step_seconds(task: str, changes: str, scratch: Path, threads: int) -> float:
    """Seconds a training step of a variant takes."""
    probe = f"--trainer.max_steps {PROBE_STEPS} --trainer.limit_val_batches 1 --overwrite true"
    run(task, f"{fit_command(task, changes)} {probe} --trainer.default_root_dir {scratch}/probe", threads)
    return json.loads((scratch / "probe" / "metrics.json").read_text())["fit"]["seconds"] / PROBE_STEPS


def train(
    task: str, name: str, variant: tuple[str, str], scratch: Path, epochs: int, budget: float | None, threads: int
) -> tuple[str, dict[str, Any]]:
    """Fit and test a variant; its command and metrics.json.

    The budget, in seconds a step of the full model, gives a cheaper one more epochs; None: all have the same number.
    """
    changes, test_changes = variant
    folder = scratch / name.replace(" ", "_")
    folder.mkdir()
    ratio = 1.0 if budget is None else budget / step_seconds(task, changes, folder, threads)
    changes += f" --trainer.max_epochs {round(epochs * max(ratio, 1.0))}"
    run(task, f"{fit_command(task, changes)} --trainer.default_root_dir {folder}/run", threads)
    run(task, f"test --checkpoint {folder}/run/model --trainer.default_root_dir {folder}/run {test_changes}", threads)
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    main_metric = next(iter(metrics["test"]))
    print(f"{name:<28} {main_metric} {metrics['test'][main_metric]:.4f}  {metrics['fit']['seconds']:.0f} s", flush=True)
    return f"python -m tasks.{task} {fit_command(task, changes)}", metrics


def main() -> None:
    """Train all variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(VARIANTS))
    parser.add_argument("--kernels", action="store_true", help="each kernel by name instead of the variants")
    parser.add_argument("--only", nargs="*", help="some of the variants, by name")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, the cores shared out among them")
    parser.add_argument("--same-epochs", action="store_true", help="as many epochs for all, and not as much time")
    parser.add_argument("--epochs", type=int, help="of the full model (default: its configuration's)")
    parser.add_argument("--write", action="store_true", help="record the figures in the task's results.json")
    options = parser.parse_args()
    from mmattn.tasks.common.results import record_result

    task, threads = options.task, max(1, (os.cpu_count() or 1) // options.jobs)
    config = f"configs/{task}.yaml"
    epochs = options.epochs or yaml.safe_load((ROOT / config).read_text())["trainer"]["max_epochs"]
    variants = kernel_variants(task) if options.kernels else VARIANTS[task]
    variants = {name: variant for name, variant in variants.items() if not options.only or name in options.only}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        scratch = Path(folder)
        budget = None if options.kernels or options.same_epochs else step_seconds(task, "", scratch, threads)
        done = {
            name: pool.submit(train, task, name, variant, scratch, epochs, budget, threads)
            for name, variant in variants.items()
        }
        results = {}
        for name, future in done.items():
            command, metrics = results[name] = future.result()
            if options.write:  # as they come: a long table that is broken off keeps its beginning
                record_result(
                    task,
                    f"{'kernels' if options.kernels else 'built-in'}: {name}",
                    command=command,
                    config=config,
                    metrics={key: value for key, value in metrics["test"].items() if isinstance(value, float)},
                    seconds=metrics["fit"]["seconds"],
                    note=f"{options.jobs} trainings at a time, {threads} thread(s) each",
                )
    columns = list(dict.fromkeys(k for _, m in results.values() for k, v in m["test"].items() if isinstance(v, float)))
    print("\n| variant | " + " | ".join(columns) + " | seconds |\n|---|" + "---|" * (len(columns) + 1))
    for name, (_, metrics) in results.items():
        cells = " | ".join(f"{metrics['test'].get(column, float('nan')):.3f}" for column in columns)
        print(f"| {name} | {cells} | {metrics['fit']['seconds']:.0f} |")


if __name__ == "__main__":
    main()
