"""Kill a training run repeatedly, resume it, and compare its result bitwise with that of an uninterrupted run.

    python scripts/kill_resume.py --kills 20

Each kill is a SIGKILL at a random moment of training or, every fourth time, during the write of a checkpoint, after
half of its bytes. Two loader workers, dropout, augmentation, averaged weights and gradient accumulation are enabled.
The weights, their average, the optimizer's state and the shipped model are compared.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FIT = (
    "fit --data.train demo --trainer.accelerator cpu --trainer.max_epochs {epochs} --trainer.accumulate_grad_batches 2 "
    "--trainer.limit_val_batches 2 --data.num_workers 2 --data.batch_size 24 --data.demo_size 40 "
    "--data.augment.brightness 0.2 --model.dropout 0.1 --optim.ema_decay 0.99 --model.embed_dim 32 --model.num_heads 2 "
    "--trainer.save_every_n_steps 2 --trainer.default_root_dir {folder}"
)


def child(arguments: list[str], delay: float | None, write: int | None) -> None:
    """Run `tasks.vqa` and kill it `delay` seconds after training starts, or in the middle of checkpoint `write`."""
    import torch
    from lightning.pytorch import LightningModule

    from mmattn.tasks.common import callbacks
    from mmattn.tasks.common.dispatch import main
    from mmattn.tasks.common.task import tasks

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if delay is not None:
        begin = LightningModule.on_train_start

        def on_train_start(self: Any) -> None:
            threading.Timer(delay, die).start()
            begin(self)

        LightningModule.on_train_start = on_train_start
    if write is not None:
        save, count = torch.save, [0]

        def dying_save(value: Any, file: Any) -> None:
            count[0] += 1
            if count[0] < write:
                return save(value, file)
            import io

            buffer = io.BytesIO()
            save(value, buffer)
            file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
            file.flush()
            die()

        callbacks.torch.save = dying_save
    main(tasks()["vqa"], arguments)


def launch(arguments: str, delay: float | None = None, write: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run this script as `child` in a separate process."""
    command = [sys.executable, __file__, "--child", arguments]
    command += ["--delay", str(delay)] if delay is not None else []
    command += ["--write", str(write)] if write is not None else []
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """The paths at which two nested structures of tensors and values differ, bit by bit."""
    import torch

    if isinstance(first, dict) and isinstance(second, dict):
        keys = [*first.keys(), *(key for key in second if key not in first)]
        return [d for key in keys for d in differences(first.get(key), second.get(key), f"{path}/{key}")]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        return [d for n, pair in enumerate(zip(first, second, strict=True)) for d in differences(*pair, f"{path}/{n}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    return [] if first == second else [path]


def compare(calm: Path, killed: Path) -> list[str]:
    """The differences between the results of two runs."""
    from mmattn.tasks.common.callbacks import read_checkpoint
    from mmattn.tasks.common.checkpoint import read_weights

    found = []
    for name in ("last.ckpt", "best.ckpt"):
        one, two = read_checkpoint(calm / name), read_checkpoint(killed / name)
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            found += differences(one[part], two[part], f"{name}/{part}")
        found += differences(one["callbacks"]["EMA"], two["callbacks"]["EMA"], f"{name}/average")
        found += differences(one["callbacks"]["BestCheckpoint"], two["callbacks"]["BestCheckpoint"], f"{name}/metrics")
    weights = "model/model.safetensors"
    return found + differences(read_weights(calm / weights), read_weights(killed / weights), weights)


def main() -> None:
    """Run the uninterrupted and the killed training, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--delay", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child.split(), options.delay, options.write)
        return
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        calm, killed = Path(folder, "calm"), Path(folder, "killed")
        began = time.monotonic()
        done = launch(FIT.format(epochs=options.epochs, folder=calm))
        if done.returncode:
            raise SystemExit(done.stderr)
        print(f"uninterrupted run: {time.monotonic() - began:.0f} s", flush=True)
        fit = FIT.format(epochs=options.epochs, folder=killed)
        kills = 0
        while kills < options.kills:
            inside = kills % 4 == 3
            resume = " --ckpt_path last" if (killed / "run.json").exists() else ""
            # Moments range from the first batch to slightly after the next few checkpoints.
            dead = launch(
                fit + resume, None if inside else rng.uniform(0.0, 1.5), rng.randint(1, 4) if inside else None
            )
            if dead.returncode == -signal.SIGKILL:
                kills += 1
                size = (killed / "last.ckpt").stat().st_size if (killed / "last.ckpt").exists() else 0
                where = "inside a checkpoint's write" if inside else "at a random moment"
                print(f"kill {kills:2d}: {where}; last.ckpt has {size:,} bytes", flush=True)
            elif dead.returncode == 0:
                print("the run ended before its kill; a new run starts", flush=True)
                finished = compare(calm, killed)
                if finished:
                    raise SystemExit(f"DIFFERENT after {kills} kills: {', '.join(finished[:5])}")
                subprocess.run(["rm", "-rf", str(killed)], check=True)
            else:
                raise SystemExit(dead.stderr)
        done = launch(fit + (" --ckpt_path last" if (killed / "run.json").exists() else ""))
        if done.returncode:
            raise SystemExit(done.stderr)
        found = compare(calm, killed)
        left = [p.name for p in killed.rglob("*.tmp")]
    print(f"{kills} kills; bitwise equal: {not found}; left-over files: {len(left)}")
    if found or left:
        raise SystemExit(f"DIFFERENT: {', '.join(found[:8] + left)}")


if __name__ == "__main__":
    main()
