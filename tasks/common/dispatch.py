"""What `python -m tasks.<task>` meets first. Standard library only, so that help and mistakes answer at once."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]

TRAINER_COMMANDS = {
    "fit": "train, validating as it goes; fills a run directory and exports the best model to its model/",
    "validate": "measure a model on the validation split, or on any file by --data.val",
    "test": "measure a model on the test split, or on any file by --data.test",
}
MODEL_COMMANDS = {
    "predict": "answer for one item or a file of them (formats: the task's README)",
    "explain": "draw what the model looked at, one PNG an item",
    "export": "write ONNX and torch.export programs, checked against the model",
}
COMMANDS = TRAINER_COMMANDS | MODEL_COMMANDS


@dataclass(frozen=True)
class Argument:
    """One raw input of a task, as `predict` and `explain` take it on the command line."""

    flag: str
    help: str
    options: dict[str, Any] = field(default_factory=dict)


class _Parser(argparse.ArgumentParser):
    """argparse that names the nearest right option instead of only refusing the wrong one."""

    def error(self, message: str) -> NoReturn:
        fail(f"{self.prog}: {message}{self.nearest(message)}\n`{self.prog} --help` lists the options.")

    def nearest(self, message: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        wrong = [word.split("=")[0] for word in message.split() if word.startswith("--")]
        close = [match for word in wrong for match in difflib.get_close_matches(word, known, n=1)]
        return f"; did you mean {', '.join(close)}?" if close and "unrecognized" in message else ""


def fail(message: str, code: int = 2) -> NoReturn:
    """End with one clear message on stderr."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(code)


def check_shadowing(names: Sequence[str] = ("data", "tasks", "mmattn")) -> None:
    """Tell a user whose own module hides one of ours, instead of failing later with an odd ImportError.

    Raises:
        SystemExit: one of `names` resolves to a file outside this installation.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or [spec.origin]) if spec else []
        if not any(place and Path(place).resolve() == ROOT / name for place in places):
            found = f"{places[0]}" if places else "nothing"
            fail(
                f"the name {name!r} is taken: Python finds {found}, expected {ROOT / name}.\n"
                f"A file or folder called {name!r} in the current folder or on PYTHONPATH hides the package of this "
                f"toolkit. Rename it, or run from another folder."
            )


def _usage(task: str, title: str) -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        f"usage: python -m tasks.{task} COMMAND [options]\n\n{title}\n\ncommands:\n{rows}\n\n"
        f"  python -m tasks.{task} fit --config configs/{task}.yaml\n"
        f"  python -m tasks.{task} COMMAND --help      the options of a command\n"
    )


TRAINER_HELP = """usage: python -m tasks.{task} {command} [--config FILE] [options]

{text}

Every key of configs/{task}.yaml is an option, e.g. --model.lr 0.001, --trainer.max_epochs 3. The usual ones:

  --config FILE                     a YAML file; later options override it
  --data.train|val|test PATH        your own data, one path a split (formats: tasks/{task}/README.md)
  --data.batch_size N  --data.num_workers N  --data.on_error raise|skip
  --model.attention.kind KIND       the encoders' attention kernel: dense, sliding_window, linear, ...
  --trainer.max_epochs N  --trainer.accelerator cpu|gpu  --trainer.devices N  --trainer.precision bf16-mixed
  --trainer.default_root_dir DIR    where everything is written (default: {root})
  --seed_everything N
{extra}
  --help-all                        every option with its type and default (takes some seconds)
  --print_config                    the complete configuration as YAML
"""
EXTRA_HELP = {
    "fit": "  --ckpt_path last                  resume the run in --trainer.default_root_dir\n"
    "  --overwrite true                  empty a run directory that is in use\n"
    "  --find_lr true                    search a learning rate first\n"
    "  --model.init_from DIR             begin with the model of this folder, ours or public, or of hf:owner/name\n",
    "validate": "  --checkpoint DIR                  a model's folder, or hf:owner/name (default: model/ of the run)\n",
    "test": "  --checkpoint DIR                  a model's folder, or hf:owner/name (default: model/ of the run)\n",
}


def model_parser(task: str, command: str, inputs: Sequence[Argument]) -> argparse.ArgumentParser:
    """The parser of predict, explain and export: the same options in every task, and the task's raw inputs."""
    parser = _Parser(prog=f"python -m tasks.{task} {command}", description=COMMANDS[command], allow_abbrev=False)
    place = "a run's model, a public model's folder or hf:owner/name (default: the model in the package)"
    parser.add_argument("--checkpoint", metavar="DIR", help=place)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    if command == "export":
        parser.add_argument("--output", metavar="DIR", default="export", help="folder to write to (default: export)")
        parser.add_argument("--format", choices=("all", "onnx", "torch"), default="all", help="default: all")
        return parser
    for argument in inputs:
        parser.add_argument(argument.flag, help=argument.help, **argument.options)
    parser.add_argument("--input", metavar="PATH", help="a file of items, or a folder (formats: the task's README)")
    if command == "predict":
        parser.add_argument(
            "--precision",
            choices=("float32", "bfloat16", "int8"),
            help="pack the weights for speed on a CPU, in float32 or fewer bits (default: they stay as they are)",
        )
    output = "file to write (default: standard output)" if command == "predict" else "PNG file, or folder for them"
    parser.add_argument("--output", metavar="PATH", help=output)
    parser.add_argument("--batch_size", type=_positive, default=32, metavar="N", help="default: 32")
    parser.add_argument(
        "--on_error",
        choices=("raise", "skip"),
        default="raise",
        help="a bad item ends the run, or is left out and counted",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def main(task: str, title: str, inputs: Sequence[Argument] = (), argv: Sequence[str] | None = None) -> None:
    """Run one command of a task.

    Args:
        task: the package's name under `tasks`.
        title: one sentence for the help.
        inputs: the task's raw inputs for `predict` and `explain`.
        argv: the arguments after `python -m tasks.<task>`; default: the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(task, title, inputs, arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`: that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        if os.environ.get("MMATTN_TRACEBACK") or not is_user_error(error):
            raise
        fail(str(error))


def _run(task: str, title: str, inputs: Sequence[Argument], arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(task, title))
        return
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        fail(f"unknown command {command!r}{hint} The commands are: {', '.join(COMMANDS)}.")
    if command in TRAINER_COMMANDS and any(word in ("-h", "--help") for word in rest):
        root = f"runs/{task}" if command == "fit" else f"the checkpoint's run, or runs/{task}"
        about = {"text": COMMANDS[command], "extra": EXTRA_HELP[command], "root": root}
        print(TRAINER_HELP.format(task=task, command=command, **about))
        return
    options = model_parser(task, command, inputs).parse_args(rest) if command in MODEL_COMMANDS else None
    check_shadowing()
    if options is not None:
        from tasks.common import inference

        inference.run(task, command, options)
    else:
        from tasks.common import cli

        cli.run(task, command, rest)


def is_user_error(error: BaseException) -> bool:
    """Whether the message of an error is meant for the user, so that a traceback would only bury it."""
    return isinstance(error, OSError) or getattr(error, "user_error", False)
