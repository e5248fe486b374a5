"""``netwright cache``: the object code that earlier processes compiled."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..ir.columns import aligned, size_text
from .failure import Failure


def add(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "cache",
        help="show or empty the cache of object code",
        description="The cache lets a second process compile nothing. NETWRIGHT_CACHE_DIR says "
        "where it is; 'off' switches it off.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, run, text in (
        ("info", info, "where the cache is and how much it holds"),
        ("clear", clear, "remove all entries"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--json", action="store_true", help="machine-readable output")
        action.set_defaults(run=run)


def info(options: argparse.Namespace) -> int:
    """Prints the place, the number and the size of the entries."""
    from ..runtime import cache

    found = cache.default().info()
    result = {key: found[key] for key in ("directory", "entries", "bytes", "problem")}
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    rows = [
        ("directory", result["directory"] or "none"),
        ("entries", str(result["entries"])),
        ("size", size_text(result["bytes"])),
    ]
    if result["problem"]:
        rows.append(("problem", result["problem"]))
    print(aligned(rows))
    return 0


def clear(options: argparse.Namespace) -> int:
    """Removes the entries."""
    from ..runtime import cache

    store = cache.default()
    try:
        removed = store.clear()
    except OSError as error:
        raise Failure(f"the cache cannot be cleared: {error}") from error
    if options.json:
        print(json.dumps({"directory": store.info()["directory"], "removed": removed}, indent=1))
    else:
        print(f"removed {removed} entries from {store.info()['directory'] or 'no directory'}")
    return 0
