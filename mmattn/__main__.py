"""`python -m mmattn TASK COMMAND ...`, also installed as `mmattn`: the tasks' command line by another door.

`python -m tasks.vqa` cannot say anything where a `tasks.py` of the user's own hides the package `tasks`, since Python
then never reaches it. This door can, for it looks before it goes through. Standard library only.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run `tasks.TASK` with the rest of the arguments, once it is sure that `tasks` is ours."""
    spec = importlib.util.find_spec("tasks")
    places = list(spec.submodule_search_locations or [spec.origin or ""]) if spec else []
    if not any(Path(place).resolve() == ROOT / "tasks" for place in places):
        found = places[0] if places else "nothing"
        sys.exit(
            f"error: the name 'tasks' is taken: Python finds {found}, expected {ROOT / 'tasks'}.\n"
            "A file or folder called 'tasks' in the current folder or on PYTHONPATH hides the package of this toolkit. "
            "Rename it, or run from another folder."
        )
    names = importlib.import_module("tasks").TASKS
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        known = ", ".join(names)
        wrong = len(sys.argv) > 1 and sys.argv[1] not in ("-h", "--help")
        print(f"usage: mmattn TASK COMMAND [options]\n\ntasks: {known}", file=sys.stderr if wrong else sys.stdout)
        sys.exit(2 if wrong else 0)
    entry = importlib.import_module(f"tasks.{sys.argv[1]}.__main__")
    entry.main(sys.argv[1], entry.TITLE, entry.INPUTS, argv=sys.argv[2:])


if __name__ == "__main__":
    main()
