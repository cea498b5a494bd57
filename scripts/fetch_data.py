"""Fetch public data sets: python scripts/fetch_data.py NAME ... [--out DIR]; --list shows the available sets."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmattn.data.errors import nearest
from scripts.fetch.archive import BASE_URL, FetchError, fetch, sources

CHECKED = """Data sets are verified after conversion; --list shows what is verified of each set: files by their SHA-256;
folders of images by file names; tars by file names and contents, in any order; masks by names, sizes and numbers,
independent of compression. Test splits are not verified."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    table = sources()
    parser = argparse.ArgumentParser(description=__doc__, epilog=CHECKED)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of: {', '.join(table)}")
    parser.add_argument(
        "--out", default=os.environ.get("MMATTN_DATA"), help="folder of data sets (default $MMATTN_DATA)"
    )
    parser.add_argument("--base-url", default=BASE_URL, help="another server with the same paths")
    parser.add_argument("--accept-changed", action="store_true", help="keep a data set whose checksums differ")
    parser.add_argument("--list", action="store_true", help="show the data sets with source and licence")
    options = parser.parse_args(arguments)
    if options.list:
        for source in table.values():
            print(f"{source.name}: {source.repository}, about {source.megabytes} MB, licence: {source.licence}")
            print(f"    checked: {', '.join(source.sha256)}")
        return 0
    for name in options.names:
        if name not in table:
            parser.error(f"no data set {name!r}{nearest(name, list(table))}; expected one of: {', '.join(table)}")
    if not options.names:
        parser.error(f"which data set? There are: {', '.join(table)}")
    if not options.out:
        parser.error("no output folder: give --out DIR or set MMATTN_DATA")
    try:
        for name in options.names:
            fetch(table[name], options.out, options.base_url, options.accept_changed, report=print)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; temporary files were removed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
