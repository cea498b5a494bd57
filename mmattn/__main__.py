"""The tasks' command line: `python -m mmattn TASK COMMAND ...`, also installed as `mmattn`. Standard library only."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {  # beside the tasks, with the module whose `main` runs it
    "models": ("named", "[TASK ...]", "list the models that ship with the tasks"),
    "serve": ("serve", "MODEL ...", "answer requests over HTTP, with a page for the browser"),
    "push": ("hub", "MODEL hf:owner/name", "upload a model with its card to the hub"),
    "weights": ("weights", "[NAME ...]", "list public weights for --init_from, or fetch them"),
}


def main() -> None:
    """Runs a task, or another command, with the remaining arguments."""
    from mmattn.tasks import tasks
    from mmattn.tasks.common.dispatch import guarded, main as run

    if sys.argv[1:] == ["--version"]:
        from mmattn import __version__

        print(f"mmattn {__version__}")
        return
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        command = importlib.import_module(f"mmattn.tasks.common.{COMMANDS[sys.argv[1]][0]}")
        return guarded(lambda: command.main(sys.argv[2:]))
    known = tasks()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        wrong = len(sys.argv) > 1 and sys.argv[1] not in ("-h", "--help")
        rows = "\n".join(f"  {f'{name} {words}':<26} {text}" for name, (_, words, text) in COMMANDS.items())
        usage = f"usage: mmattn TASK COMMAND [options]\n\ntasks: {', '.join(known)}\n\nother commands:\n{rows}"
        print(usage, file=sys.stderr if wrong else sys.stdout)
        sys.exit(2 if wrong else 0)
    run(known[sys.argv[1]], sys.argv[2:], f"mmattn {sys.argv[1]}")


if __name__ == "__main__":
    main()
