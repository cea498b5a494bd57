"""Print the largest error of each check for each kernel and module of the core; fail if one exceeds the tolerance.

python scripts/check_core.py [part of a row's name]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "core")]  # the checks are in the folder of the tests that assert them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="", help="only rows whose name contains this")
    name = parser.parse_args().name

    from checks import COLUMNS, TOLERANCE
    from rows import ROWS

    rows = [row for row in ROWS if name in row.name]
    if not rows:
        parser.error(f"no row's name contains {name!r}; the rows are: {', '.join(row.name for row in ROWS)}")
    width = max(len(row.name) for row in rows)
    print(f"float64, largest absolute difference, allowed {TOLERANCE:.0e}")
    print(" " * width, *(f"{column:>18}" for column in COLUMNS))
    start, broken = time.perf_counter(), 0
    for row in rows:
        print(f"{row.name:<{width}}", end="", flush=True)
        for check in COLUMNS.values():
            found = check(row)
            bad = found is not None and not found <= TOLERANCE
            broken += bad
            cell = "n/a" if found is None else f"{found:.1e}"
            print(f" {cell + ' FAIL' if bad else cell:>18}", end="", flush=True)
        print()
    verdict = f"{broken} broken" if broken else "all hold"
    print(f"{verdict}, {time.perf_counter() - start:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
