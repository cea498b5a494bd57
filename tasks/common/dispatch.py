"""Entry point of `python -m tasks.<task>`. It imports the standard library alone, so that help is immediate."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mmattn.data.errors import is_user_error
from mmattn.tasks.common.errors import missing_package, require
from mmattn.tasks.common.serving.options import PACKAGES, add_server_options
from mmattn.tasks.common.task import Task

TRAINER_COMMANDS = {
    "fit": "train and validate; writes a run directory with the best model in its model/",
    "validate": "evaluate a model on the validation split, or on the file given by --data.val",
    "test": "evaluate a model on the test split, or on the file given by --data.test",
}
MODEL_COMMANDS = {
    "predict": "predict one item or a file of items (formats: the task's README)",
    "explain": "plot the model's attention, one PNG per item",
    "export": "write ONNX and torch.export programs, compared with the model",
    "serve": "answer requests over HTTP, with a page for the browser",
}
DATA_COMMANDS = {"check": "check data without training: classes or lengths, repeated and bad items, leaks"}
COMMANDS = TRAINER_COMMANDS | MODEL_COMMANDS | DATA_COMMANDS
TRAINING = ("lightning", "torchmetrics", "jsonargparse", "rich")  # modules that each of the trainer's commands needs
NEEDS = {"explain": ("matplotlib",), "serve": PACKAGES}  # and those of the others


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that suggests the nearest valid option."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self.parse_intermixed_args(args, namespace)  # options may stand between paths

    def error(self, message: str) -> NoReturn:
        fail(f"{self.prog}: {message}{self.nearest(message)}\n`{self.prog} --help` lists the options.")

    def nearest(self, message: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        wrong = [word.split("=")[0] for word in message.split() if word.startswith("--")]
        close = [match for word in wrong for match in difflib.get_close_matches(word, known, n=1)]
        return f"; did you mean {', '.join(close)}?" if close and "unrecognized" in message else ""


def fail(message: str, code: int = 2) -> NoReturn:
    """Exit with a message on stderr."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(code)


def _usage(task: Task, program: str) -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        f"usage: {program} COMMAND [options]\n\n{task.title}\n\ncommands:\n{rows}\n\n"
        f"  {program} fit --config configs/{task.name}.yaml\n"
        f"  {program} COMMAND --help      the options of a command\n"
    )


TRAINER_HELP = """usage: {program} {command} [--config FILE] [options]

{text}

Every key of configs/{task}.yaml is an option, e.g. --optim.lr 0.001, --trainer.max_epochs 3. The usual ones:

  --config FILE                     a YAML file; later options override it
  --data.train|val|test PATH        your own data, one path per split (formats: tasks/{task}/README.md), or demo;
                                    without val a fifth of the training data is held out
  --data.batch_size N  --data.num_workers N  --data.on_error raise|skip
  --model.attention.kind KIND       the encoders' attention kernel: dense, sliding_window, linear, ...
  --trainer.max_epochs N  --trainer.max_time DD:HH:MM:SS
  --trainer.accelerator cpu|gpu  --trainer.devices N  --trainer.precision bf16-mixed
  --trainer.default_root_dir DIR    where everything is written (default: {root})
  --trainer.logger NAME             where figures are logged besides: tensorboard, csv, wandb, mlflow
  --seed_everything N
{extra}
  --help-all                        every option with its type and default (takes a few seconds)
  --print_config                    the complete configuration as YAML
"""
EXTRA_HELP = {
    "fit": "  --ckpt_path last                  resume the run in --trainer.default_root_dir\n"
    "  --overwrite true                  empty an existing run directory\n"
    "  --find_lr true                    search for a learning rate first\n"
    "  --init_from MODEL                 fine-tune public weights by name (`mmattn weights` lists them), timm/NAME,\n"
    "                                    hf:owner/name, or the model of a folder\n",
    "validate": "  --checkpoint DIR                  a model's folder, or hf:owner/name (default: model/ of the run)\n",
    "test": "  --checkpoint DIR                  a model's folder, or hf:owner/name (default: model/ of the run)\n",
}


CHECK_HELP = """usage: {program} check PATH [PATH ...] [options]

{text}; a column for each PATH. The exit code is 1 if there are bad items, 2 if no
model can be trained on the data.

  --data.train|val|test PATH        the same, by name
  --data.KEY VALUE                  how the data are read, as in fit
  --config FILE                     the `data` of a configuration
"""


def model_parser(task: Task, command: str, program: str = "") -> argparse.ArgumentParser:
    """The parser of predict, explain, export and serve: options common to all tasks, and the task's own."""
    program = program or f"mmattn {task.name}"
    parser = _Parser(prog=f"{program} {command}", description=COMMANDS[command], allow_abbrev=False)
    place = "a run or its model, a shipped model by name, a public model's folder, or hf:owner/name"
    ships = (task.folder / "checkpoints" / task.default_checkpoint).is_dir()
    default = f" (default: {task.name}/{task.default_checkpoint})" if ships else ""
    parser.add_argument("--checkpoint", metavar="DIR", help=place + default)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    if command == "export":
        parser.add_argument("--output", metavar="DIR", default="export", help="folder to write to (default: export)")
        about_format = "default: all, which is onnx and torch; transformers: a folder that this library loads"
        parser.add_argument(
            "--format", choices=("all", "onnx", "torch", "transformers"), default="all", help=about_format
        )
        return parser
    if command == "serve":
        for option in (option for option in task.options if option.kind == "load"):
            parser.add_argument(f"--{option.name}", help=option.help, type=option.type, metavar=option.metavar)
        add_server_options(parser)
        return parser
    text = next((f", or a text in quotes for --{option.name}" for option in task.options if option.bare), "")
    parser.add_argument("paths", nargs="*", metavar="PATH", default=[], help=f"files and folders, as for --input{text}")
    for option in task.options:
        if option.only not in (None, command):
            continue
        about: dict[str, Any] = {"help": option.help, "default": option.default}
        about |= {"action": "store_true"} if option.type is bool else {"type": option.type, "metavar": option.metavar}
        parser.add_argument(f"--{option.name}", **about)
    parser.add_argument("--input", metavar="PATH", help="a file of items, or a folder (formats: the task's README)")
    if command == "predict":
        parser.add_argument(
            "--precision",
            choices=("float32", "bfloat16", "int8"),
            help="pack the weights for speed on a CPU, in float32 or fewer bits (default: not packed)",
        )
    output = {
        "predict": "file to write (default: standard output)",
        "explain": "PNG file, or a folder for several (default: explanation.png or explanations/)",
    }
    parser.add_argument("--output", metavar="PATH", help=output[command])
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N items (default: all)")
    parser.add_argument("--batch_size", type=_positive, default=32, metavar="N", help="default: 32")
    parser.add_argument(
        "--on_error",
        choices=("raise", "skip"),
        default="raise",
        help="stop at the first bad item, or skip and count bad items (default: raise)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, found {text!r}")
    return int(text)


def main(task: Task, argv: Sequence[str] | None = None, program: str = "") -> None:
    """Run one command of a task.

    Args:
        task: The task.
        argv: Arguments after the program's name; default: those of the process.
        program: Name of the program in help texts; default: `python -m tasks.NAME`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    guarded(lambda: _run(task, arguments, program or f"python -m tasks.{task.name}"), arguments[:1])


def guarded(command: Callable[[], None], name: Sequence[str] = ()) -> None:
    """Run a command; an error of the user's ends in one line on stderr.

    Args:
        command: The command.
        name: Its name.
    """
    try:
        command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except BrokenPipeError:  # the reader of the output has closed it, as in `... | head`: not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("mmattn")
        if os.environ.get("MMATTN_TRACEBACK") or not (missing or is_user_error(error)):
            raise
        message = missing_package(error) if isinstance(error, ImportError) else str(error)
        if getattr(error, "can_skip", False) and (option := _skipping(name)):
            message += f"; {option} skip leaves it out and counts it"
        fail(message)


def _skipping(name: Sequence[str]) -> str:
    """The option by which a command leaves invalid items out; empty: it has none."""
    if not name or name[0] == "serve":
        return ""
    return "--data.on_error" if name[0] in TRAINER_COMMANDS else "--on_error"


def _run(task: Task, arguments: list[str], program: str) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(task, program))
        return
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        fail(f"unknown command {command!r}{hint} The commands are: {', '.join(COMMANDS)}.")
    if command in DATA_COMMANDS:
        _check(task, rest, program)
        return
    bare = command == "fit" and not rest  # no training data are named
    if bare or (command in TRAINER_COMMANDS and any(word in ("-h", "--help") for word in rest)):
        root = f"runs/{task.name}" if command == "fit" else f"the checkpoint's run, or runs/{task.name}"
        about = {"text": COMMANDS[command], "extra": EXTRA_HELP[command], "root": root, "program": program}
        print(TRAINER_HELP.format(task=task.name, command=command, **about), file=sys.stderr if bare else sys.stdout)
        if bare:
            raise SystemExit(2)
        return
    if command in MODEL_COMMANDS:
        options = model_parser(task, command, program).parse_args(rest)
        require(*NEEDS.get(command, ()))
        if command == "serve":
            from mmattn.tasks.common.serve import serve

            serve(task, [options.checkpoint or f"{task.name}/{task.default_checkpoint}"], options)
            return
        from mmattn.tasks.common import commands

        commands.run(task, command, options)
    else:
        require(*TRAINING, *task.packages)
        from mmattn.tasks.common import cli

        cli.run(task, command, rest, program)


def _check(task: Task, rest: list[str], program: str) -> None:
    if not rest or any(word in ("-h", "--help") for word in rest):
        print(CHECK_HELP.format(program=program, text=COMMANDS["check"]), file=sys.stdout if rest else sys.stderr)
        raise SystemExit(0 if rest else 2)
    from mmattn.tasks.common import check

    if not check.run(task, rest):
        raise SystemExit(1)
