"""The table and the picture of results/peers.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from netwright.commands.peers.command import threads_text
from netwright.commands.peers.contest import NETWRIGHT
from netwright.commands.peers.peer import PEERS, Peer

_COLORS = {
    "torch": "#d9822b",
    "compile": "#b0413e",
    "ort": "#2a78b8",
    "openvino": "#6a4c93",
    "jax": "#3a8f5c",
}
Peers = Mapping[str, Peer]


def groups(rows: list[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The rows by number of threads, most threads first."""
    for threads in sorted({row["threads"] for row in rows}, reverse=True):
        yield threads, [row for row in rows if row["threads"] == threads]


def names(rows: list[dict[str, Any]], known: Peers) -> list[str]:
    """The peers that were measured in some row."""
    return [name for name in known if any("median_ms" in r["peers"].get(name, {}) for r in rows)]


def geometric_mean(values: list[float]) -> float:
    """NaN without values."""
    if not values:
        return math.nan
    return math.exp(sum(map(math.log, values)) / len(values))


def peak_share(row: dict[str, Any]) -> float:
    """The part of the probed FMA peak that netwright's matrix products and convolutions reach."""
    peak = max(row["peak_gflops"].values())
    return float(row["gflop"] / row[NETWRIGHT]["median_ms"] * 1e3 / peak)


def markdown(rows: list[dict[str, Any]], known: Peers = PEERS) -> str:
    """A table per number of threads: medians in ms, the fastest peer, how many times longer it
    takes than netwright, and the geometric mean of these ratios."""
    return "\n\n".join(_table(threads, group, known) for threads, group in groups(rows))


def _table(threads: int, rows: list[dict[str, Any]], known: Peers) -> str:
    peers = names(rows, known)
    titles = [known[name].title for name in peers]
    heads = [f"{threads_text(threads)}, ms", NETWRIGHT, *titles, "fastest peer", "ratio", "of peak"]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for row in rows:
        fastest = row["fastest_peer"]
        cells = [f"{row['model']}, batch {row['batch']}", _ms(row[NETWRIGHT])]
        cells += [_ms(row["peers"].get(name, {})) for name in peers]
        cells += [known[fastest].title if fastest else "-"]
        cells += [f"{row['ratio']:.2f}x" if fastest else "-", f"{peak_share(row):.0%}"]
        lines.append(_line(cells))
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    blanks = [""] * (len(peers) + 1)
    mean = f"**{geometric_mean(ratios):.2f}x**" if ratios else "-"
    lines.append(_line(["geometric mean", *blanks, "", mean, ""]))
    failures = [
        f"- {row['model']}, batch {row['batch']}: {known[name].title} failed: {found['failed']}"
        for row in rows
        for name, found in row["peers"].items()
        if "failed" in found
    ]
    return "\n".join(lines) + ("\n\n" + "\n".join(failures) if failures else "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ms(found: dict[str, Any]) -> str:
    """A median to three digits; a dash for what was not measured."""
    if "median_ms" not in found:
        return "failed" if "failed" in found else "-"
    value = found["median_ms"]
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def plot(rows: list[dict[str, Any]], path: Path, known: Peers = PEERS) -> None:
    """Bars of each peer's time as a multiple of netwright's, with the quartiles of the peer; a bar
    to the right says that the peer is slower."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    found = list(groups(rows))
    peers = names(rows, known)
    longest = max(len(group) for _, group in found)
    figure, panels = plt.subplots(
        1, len(found), figsize=(2.5 + 4.5 * len(found), 1.6 + 0.55 * longest), squeeze=False
    )
    for axes, (threads, group) in zip(panels[0], found, strict=True):
        places = np.arange(len(group))[::-1].astype(float)
        height = 0.8 / max(len(peers), 1)
        for i, name in enumerate(peers):
            shown = [
                (place, row)
                for place, row in zip(places, group, strict=True)
                if "median_ms" in row["peers"].get(name, {})
            ]
            ours = np.array([row[NETWRIGHT]["median_ms"] for _, row in shown])
            q1, median, q3 = (
                np.array([row["peers"][name][k] for _, row in shown]) / ours
                for k in ("q1_ms", "median_ms", "q3_ms")
            )
            axes.barh(
                [place + 0.4 - height * (i + 0.5) for place, _ in shown],
                median - 1,
                height,
                left=1,
                xerr=[np.maximum(median - q1, 0), np.maximum(q3 - median, 0)],
                color=_COLORS[name],
                label=known[name].title,
                error_kw={"linewidth": 0.6},
            )
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.set_yticks(places, [f"{r['model']}\nbatch {r['batch']}" for r in group], fontsize=7)
        axes.set_title(threads_text(threads))
        axes.set_xlabel("time / netwright's time")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=max(len(peers), 1), frameon=False)
    figure.suptitle(rows[0]["settings"]["cpu"] + ", float32, medians of interleaved rounds")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
