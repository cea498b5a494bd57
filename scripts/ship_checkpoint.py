"""Ship the model of a run with its task: in half precision, evaluated, with data and licence on its card.

python scripts/ship_checkpoint.py vqa runs/vqa/model
python scripts/ship_checkpoint.py asr runs/fsdd/model --name fsdd --data "FSDD (https://github.com/...)" \
    --licence "CC BY-SA 4.0" --measure "validate --data.val $MMATTN_DATA/fsdd/val.jsonl" --split "FSDD validation"
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


PLACES = ("--trainer.default_root_dir", "--trainer.enable_progress_bar", "--overwrite")


def without_places(command: str) -> str:
    """A command without the options of output folders and progress, which do not affect the weights."""
    words = command.split()
    return " ".join(w for before, w in zip(["", *words], words, strict=False) if not {w, before} & set(PLACES))


def main() -> None:
    """Write the folder, evaluate the model, and write the folder again with its figures on the model card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("model", help="the model/ folder of a run")
    parser.add_argument("--name", default="demo", help="name of the model in TASK/NAME (default: demo)")
    parser.add_argument("--data", help="what it was trained on, with its address (default: the built-in data)")
    parser.add_argument("--licence", help="licence of the weights, which that of the data may determine")
    parser.add_argument("--measure", default="test", help="command that measures it (default: test, on built-in data)")
    parser.add_argument(
        "--base", help="name of public weights, whose update alone is stored (default: all weights are)"
    )
    parser.add_argument("--split", default="built-in test", help="name of the measured split")
    options = parser.parse_args()
    from mmattn.tasks import load, tasks
    from mmattn.tasks.common.adapter import read_parts
    from mmattn.tasks.common.base import describe_base, subtract_base
    from mmattn.tasks.common.checkpoint import save_directory
    from mmattn.tasks.common.files import write_json
    from mmattn.tasks.common.rundir import read_json
    from mmattn.tasks.common.serving.examples import FILE, read_examples
    from mmattn.tasks.common.sources import CHECKPOINTS

    predictor = load(options.model, device="cpu")
    if predictor.parts.own_data and not (options.data and options.licence):
        parser.error(f"{options.model} was not trained on the built-in data: --data and --licence are needed")
    target = tasks()[options.task].folder / CHECKPOINTS / options.name
    parts = {
        "task": options.task,
        "model": predictor.model,
        "keywords": predictor.parts.keywords,
        "network": predictor.parts.network,
        "processor": predictor.processor,
        "command": without_places(read_json(Path(options.model).parent / "run.json").get("command", "")),
        "half": True,
        "own_data": predictor.parts.own_data,
        "about": {"data": options.data, "licence": options.licence} if options.data else None,
        "name": f"{options.task}/{options.name}",
    }
    if options.base is not None:
        given = read_parts(options.task, options.base).state
        parts |= {
            "base": describe_base(options.base),
            "state": subtract_base(predictor.model.state_dict(), given),
        }
    examples = read_examples(target)  # written by hand, for data that may not be shipped
    save_directory(target, **parts)
    with tempfile.TemporaryDirectory() as scratch:
        words = [options.task, *shlex.split(options.measure), "--checkpoint", str(target)]
        command = [sys.executable, "-m", "mmattn", *words, "--trainer.default_root_dir", scratch]
        subprocess.run(command, cwd=ROOT, check=True)
        measured = next(iter(json.loads(Path(scratch, "metrics.json").read_text()).values()))
    metrics = {options.split: {name: value for name, value in measured.items() if isinstance(value, float)}}
    save_directory(target, **parts, metrics=metrics)
    if examples:
        write_json(target / FILE, examples)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target} written, {size:,} bytes.")


if __name__ == "__main__":
    main()
