"""``netwright bench --peers``: a user's model in netwright and in other runtimes."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...ir.columns import aligned
from ...runtime import settings
from .. import losses, model_file, model_inputs
from ..failure import Failure, Misuse, user_code
from ..progress import Progress
from ..text import counts
from . import train_contest
from .contest import NETWRIGHT, Say, contest
from .peer import PEERS, Peer, versions
from .training import without_dropout

if TYPE_CHECKING:
    from ...frontend.nn.module import Module

_HEADER = ("runtime", "median ms", "q1", "q3", "x netwright", "error", "set-up s")


def parse_peers(text: str) -> list[str]:
    """Reads ``torch,ort``; nothing means all. ArgumentTypeError for an unknown name."""
    names = text.split(",") if text else list(PEERS)
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown peer {', '.join(map(repr, unknown))}; the peers are {', '.join(PEERS)}"
        )
    return names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--peers`` and ``--threads``."""
    parser.add_argument(
        "--peers",
        nargs="?",
        const=[],
        type=parse_peers,
        metavar="NAME[,NAME...]",
        help="compare with other runtimes instead of with eager execution: all that are "
        f"installed, or those named, of {', '.join(PEERS)}; with --train, of "
        f"{', '.join(train_contest.PEERS)} (not JAX, to which there is no export)",
    )
    parser.add_argument(
        "--threads",
        type=counts,
        metavar="N[,N...]",
        help="with --peers: threads of every runtime, such as 1,2 (default: netwright's own)",
    )


def run(options: argparse.Namespace, batches: list[int]) -> int:
    """Compares, times and prints."""
    if options.loss and not options.train:
        raise Misuse(
            "--loss: with --peers, inference is compared or, with --train, training; leave --loss "
            "out or add --train"
        )
    threads = options.threads or [settings.num_threads()]
    result = measure(options, batches, threads)
    print(json.dumps(result, indent=1) if options.json else report(result))
    return 0


def measure(options: argparse.Namespace, batches: list[int], threads: list[int]) -> dict[str, Any]:
    """Everything that ``--json`` prints."""
    from ...bridge.compile import compile as compile_model
    from ...codegen.target import host
    from ...runtime import probe
    from ..machine import isa_name

    names, known = _chosen(options)
    if not any(known[name].version() for name in names):
        wanted = ", ".join(known[name].title for name in names)
        raise Failure(
            f"none of {wanted} is installed; pip install 'netwright[bench]' brings ONNX Runtime "
            "and OpenVINO, 'netwright[torch]' PyTorch"
        )
    model, file = model_file.load_model(options.model)
    compiled = compile_model(model.eval())
    rows: list[dict[str, Any]] = []

    def compete(inputs: list[Any], count: int, say: Say) -> dict[str, Any]:
        if options.train:
            return _train(model, inputs, options, names, count, say)
        return contest(compiled, inputs, names, count, options.seconds, say)

    with user_code(options.model, file):
        for batch in batches:
            specs = model_inputs.with_batch(options.inputs, batch)
            inputs = model_inputs.make_inputs(specs)
            for count in threads:
                label = f"batch {batch}, {threads_text(count)}:"
                with Display(label) as display:
                    row = compete(inputs, count, display.say)
                    display.result = verdict(row, known)
                rows.append({"batch": batch, **row})
    return {
        "model": options.model,
        "inputs": [str(spec) for spec in options.inputs],
        "cpu": probe.cpu_model(),
        "isa": isa_name(host()),
        "versions": versions(),
        **_mode(options, compiled.fallbacks if not options.train else rows[0]["fallbacks"]),
        "rows": rows,
    }


def _chosen(options: argparse.Namespace) -> tuple[list[str], Mapping[str, Peer]]:
    """The peers that the options ask for, of which ones. Misuse for those that do not train."""
    known = train_contest.PEERS if options.train else PEERS
    if not options.peers:
        return list(known), known
    others = [PEERS[name].title for name in options.peers if name not in known]
    if others:
        raise Misuse(
            f"--peers: {', '.join(others)} cannot train; with --train, the peers are "
            f"{', '.join(known)}"
        )
    return options.peers, known


def _train(
    model: Module,
    inputs: list[Any],
    options: argparse.Namespace,
    names: list[str],
    threads: int,
    say: Say,
) -> dict[str, Any]:
    """A row of training steps."""
    return train_contest.contest(
        without_dropout(copy.deepcopy(model).train()),
        inputs,
        options.loss or losses.DEFAULT,
        train_contest.RECIPES[options.optimizer or "sgd"],
        names,
        threads,
        options.seconds,
        say,
    )


def _mode(options: argparse.Namespace, fallbacks: int) -> dict[str, Any]:
    """What was timed, as JSON."""
    if not options.train:
        return {"fallbacks": fallbacks}
    recipe = train_contest.RECIPES[options.optimizer or "sgd"]
    training = {"loss": options.loss or losses.DEFAULT, "optimizer": recipe.title}
    return {"fallbacks": fallbacks, "training": training}


class Display:
    """Shows a contest's progress on stderr; ``result`` is the line that remains of it."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Progress | None = None
        self.result = "failed"

    def __enter__(self) -> Display:
        return self

    def say(self, step: int, total: int, text: str) -> None:
        """Tells the user what happens now."""
        if self._bar is None:
            self._bar = Progress(self._label, total)
        self._bar.update(step, text)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.done(self.result)


def threads_text(threads: int) -> str:
    """``2 threads``."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def verdict(row: dict[str, Any], peers: Mapping[str, Peer] = PEERS) -> str:
    """One line about a row."""
    ours = f"netwright {row[NETWRIGHT]['median_ms']:.3f} ms"
    if row["fastest_peer"] is None:
        return f"{ours}; no peer ran"
    peer = row["peers"][row["fastest_peer"]]
    title = peers[row["fastest_peer"]].title
    return f"{ours}, {title} {peer['median_ms']:.3f} ms: {row['ratio']:.2f}x"


def report(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{result['model']}  input {', '.join(result['inputs'])}",
        f"{result['cpu']}, {result['isa']}",
        ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    ]
    if "training" in result:
        training = result["training"]
        lines.append(
            f"training steps: {training['loss']}, {training['optimizer']}; dropout is 0; errors "
            "are those of the gradients"
        )
    if result["fallbacks"]:
        lines.append(f"{result['fallbacks']} operators run through numpy (no native kernel yet)")
    for row in result["rows"]:
        peak = row["peak_gflops"]
        lines += [
            "",
            f"batch {row['batch']}, {threads_text(row['threads'])}; errors against "
            f"{row['reference']}; FMA peak {peak['before']:.0f} GFLOP/s before, "
            f"{peak['after']:.0f} after",
            row_table(row),
        ]
    return "\n".join(lines)


def row_table(row: dict[str, Any]) -> str:
    """The runtimes of one row."""
    ours = row[NETWRIGHT]["median_ms"]
    lines: list[tuple[str, ...]] = [_HEADER]
    failures = []
    for name, found in {NETWRIGHT: row[NETWRIGHT], **row["peers"]}.items():
        title = PEERS[name].title if name in PEERS else name
        if "failed" in found:
            failures.append(f"{title} failed: {found['failed']}")
            continue
        lines.append(
            (
                title,
                *(f"{found[k]:.3f}" for k in ("median_ms", "q1_ms", "q3_ms")),
                f"{found['median_ms'] / ours:.2f}x",
                f"{found['error']:.1e}",
                f"{found['set_up_s']:.1f}",
            )
        )
    return "\n".join([aligned(lines, right=range(1, len(_HEADER))), *failures])
