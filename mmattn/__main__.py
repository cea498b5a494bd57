"""The tasks' command line: `python -m mmattn TASK COMMAND ...`, also installed as `mmattn`. Standard library only."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs a task with the remaining arguments."""
    from mmattn.tasks import tasks
    from mmattn.tasks.common.dispatch import guarded, main as run

    if sys.argv[1:] == ["--version"]:
        from mmattn import __version__

        print(f"mmattn {__version__}")
        return
    if sys.argv[1:2] == ["weights"]:
        from mmattn.tasks.common.weights import main as weights

        return weights(sys.argv[2:])
    if sys.argv[1:2] == ["serve"]:
        from mmattn.tasks.common.serve import main as serve

        return guarded(lambda: serve(sys.argv[2:]))
    known = tasks()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        wrong = len(sys.argv) > 1 and sys.argv[1] not in ("-h", "--help")
        usage = f"usage: mmattn TASK COMMAND [options]\n\ntasks: {', '.join(known)}\n\nmmattn weights [NAME]   list "
        usage += (
            "public weights for --init_from, or fetch them\nmmattn serve MODEL ...   answer requests over HTTP, with "
        )
        usage += "a page for the browser"
        print(usage, file=sys.stderr if wrong else sys.stdout)
        sys.exit(2 if wrong else 0)
    run(known[sys.argv[1]], sys.argv[2:], f"mmattn {sys.argv[1]}")


if __name__ == "__main__":
    main()
