"""Rows of results: measured with a progress display, kept in JSON, continued after a stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import netwright as nw
from netwright.commands.failure import Failure
from netwright.commands.peers.command import Display, threads_text, verdict
from netwright.commands.peers.contest import Say
from netwright.commands.peers.peer import PEERS, Peer

Row = dict[str, Any]


def label(name: str, batch: int) -> str:
    """``resnet50, 224x224, batch 1``."""
    return f"{name}, batch {batch}"


class Rows:
    """The rows of a file; each knows the settings (commit, CPU, options) that it was measured with.

    order: names of the models, as the table has them; rows of others are dropped.
    """

    def __init__(
        self, path: Path, facts: dict[str, Any], settings: dict[str, Any], order: Sequence[str]
    ) -> None:
        self._path, self._facts, self._settings = path, facts, settings
        self._places = {name: i for i, name in enumerate(order)}
        self._rows = {_key(row): row for row in load(path)}

    def is_missing(self, model: str, batch: int, threads: int) -> bool:
        """Whether the file has no such row of the same settings and a clean commit."""
        row = self._rows.get((model, batch, threads))
        dirty = self._settings["commit"].endswith("-dirty")
        return row is None or row["settings"] != self._settings or dirty

    def add(self, model: str, batch: int, threads: int, found: Row) -> None:
        """Puts a row in its place and writes the file; a run that is killed meanwhile leaves the
        old file or the new one."""
        row = {"model": model, "batch": batch, "threads": threads, **found}
        row["settings"] = self._settings
        self._rows[_key(row)] = row
        kept = [row for row in self._rows.values() if row["model"] in self._places]
        kept.sort(key=lambda r: (r["threads"], self._places[r["model"]], r["batch"]))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps({"environment": self._facts, "rows": kept}, indent=2) + "\n")
        beside.replace(self._path)


def _key(row: Row) -> tuple[Any, ...]:
    """What makes two rows the same measurement, of perhaps different programs."""
    return row["model"], row["batch"], row["threads"]


def load(path: Path) -> list[Row]:
    """The rows of an earlier run."""
    if not path.exists():
        return []
    rows: list[Row] = json.loads(path.read_text())["rows"]
    return rows


def measure_row(
    name: str, threads: int, go: Callable[[Say], Row], peers: Mapping[str, Peer] = PEERS
) -> Row:
    """The row that ``go`` measures; ``failed`` with the reason if netwright itself fails or is
    wrong. Shows progress and, at the end, the result."""
    with Display(f"{name}, {threads_text(threads)}:") as display:
        start = time.perf_counter()
        try:
            row = go(display.say)
        except (Failure, nw.errors.NetwrightError) as error:
            display.result = f"failed: {error}"
            return {"failed": str(error)}
        display.result = f"{verdict(row, peers)} ({time.perf_counter() - start:.0f} s)"
        for key, found in row["peers"].items():
            if "failed" in found:
                display.result += f"; {peers[key].title} failed: {found['failed']}"
    return row
