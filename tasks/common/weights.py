"""`mmattn weights`: a table of the public weights that have a name, and their fetching."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmattn.tasks.common.dispatch import fail


def main(argv: Sequence[str]) -> None:
    """List the named weights, or fetch those that are named, and print their folders.

    Args:
        argv: Names; none: the table.
    """
    from mmattn.pretrained.named import TABLE, cache_folder, named_folder

    parser = argparse.ArgumentParser(prog="mmattn weights", description="list or fetch public weights for --init_from")
    parser.add_argument("name", nargs="*", help=f"weights to fetch, of {', '.join(TABLE)} (default: a table of them)")
    names = parser.parse_args(argv).name
    for name in names:
        if name not in TABLE:
            fail(f"weights: expected one of {', '.join(TABLE)}, found {name!r}.")
        try:
            print(named_folder(name))
        except (OSError, ValueError, ModuleNotFoundError) as error:
            fail(str(error))
    if names:
        return
    for name, about in TABLE.items():
        place = cache_folder() / name
        state = f"in {place}" if (place / "config.json").is_file() else "not fetched"
        print(f"{name}\n  {about.title}\n  {about.megabytes} MB, {about.licence}, {about.source}\n  {state}")
    print("\nAlso accepted by --init_from: timm/NAME, hf:owner/name, and the folder of a model.")
