"""Writing LLVM IR as text: a function under construction, loops with carried values.

Kernels are built as strings because that is an order of magnitude faster than building llvmlite
objects, and because what is printed is what was written. Every ``emit`` returns the SSA name that
it defines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Loop:
    """An open loop: its index, its carried values, and the values they take next."""

    index: str
    carried: list[str]
    next: list[str] = field(default_factory=list)

    @property
    def results(self) -> list[str]:
        """The carried values after the loop (also right when it ran zero times)."""
        return self.carried


class Function:
    """A function being written, block by block."""

    def __init__(
        self,
        name: str,
        params: Sequence[tuple[str, str]],
        attributes: str = "nounwind",
        linkage: str = "internal",
        shared: bool = False,
    ) -> None:
        """``params`` are (type with attributes, name without %) pairs.

        A ``shared`` function is the same wherever its name is used; a module has it once.
        """
        self.name = name
        self.params = list(params)
        self.attributes = attributes
        self.linkage = linkage
        self.shared = shared
        self.declarations: set[str] = set()
        self._lines: list[str] = ["entry:"]
        self._block = "entry"
        self._counter = 0

    def fresh(self, prefix: str = "t") -> str:
        """A new SSA name (with %)."""
        self._counter += 1
        return f"%{prefix}{self._counter}"

    def emit(self, text: str, name: str | None = None) -> str:
        """Appends ``%x = text`` and returns ``%x``."""
        if name is None:  # as in `fresh`: most of the time of making kernels is spent here
            self._counter += 1
            name = f"%t{self._counter}"
        self._lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        """Appends an instruction without a result."""
        self._lines.append("  " + text)

    def declare(self, text: str) -> None:
        """Notes a ``declare`` line that the module needs."""
        self.declarations.add(text)

    def call(self, result: str, callee: str, *args: tuple[str, str]) -> str:
        """Calls an intrinsic ``@callee``; ``args`` are (type, value); declares it too."""
        types = ", ".join(t for t, _ in args)
        self.declare(f"declare {result} @{callee}({types})")
        values = ", ".join(f"{t} {v}" for t, v in args)
        text = f"call {result} @{callee}({values})"
        if result == "void":
            self.do(text)
            return ""
        return self.emit(text)

    def label(self, name: str) -> None:
        """Starts a block."""
        self._lines.append(f"{name}:")
        self._block = name

    @contextmanager
    def loop(
        self,
        stop: str | int,
        start: str | int = 0,
        step: str | int = 1,
        carry: Sequence[tuple[str, str]] = (),
    ) -> Iterator[Loop]:
        """``for index in range(start, stop, step)`` on i64 (signed, any trip count, also zero).

        ``carry`` holds (type, initial value) pairs; the body sets ``loop.next`` to as many values.
        """
        self._counter += 1
        tag = self._counter
        head, body, latch, done = (f"{p}{tag}" for p in ("head", "body", "latch", "done"))
        before = self._block
        self.do(f"br label %{head}")
        self.label(head)
        index = f"%i{tag}"
        carried = [f"%c{tag}_{k}" for k in range(len(carry))]
        at = len(self._lines)
        condition = self.fresh("go")
        self.do(f"{condition} = icmp slt i64 {index}, {stop}")
        self.do(f"br i1 {condition}, label %{body}, label %{done}")
        self.label(body)
        loop = Loop(index, carried)
        yield loop
        if len(loop.next) != len(carry):
            raise ValueError(f"loop carries {len(carry)} values but its body set {len(loop.next)}")
        self.do(f"br label %{latch}")
        self.label(latch)
        following = self.emit(f"add nsw i64 {index}, {step}", f"%n{tag}")
        self.do(f"br label %{head}")
        phis = [f"  {index} = phi i64 [{start}, %{before}], [{following}, %{latch}]"]
        phis += [
            f"  {name} = phi {kind} [{init}, %{before}], [{value}, %{latch}]"
            for name, (kind, init), value in zip(carried, carry, loop.next, strict=True)
        ]
        self._lines[at:at] = phis
        self.label(done)

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """``if (condition) { ... }`` for statements without results."""
        self._counter += 1
        then, done = f"then{self._counter}", f"fi{self._counter}"
        self.do(f"br i1 {condition}, label %{then}, label %{done}")
        self.label(then)
        yield
        self.do(f"br label %{done}")
        self.label(done)

    def element(self, base: str, kind: str, index: str | int) -> str:
        """Address of element ``index`` of an array of ``kind`` at ``base``."""
        return self.emit(f"getelementptr inbounds {kind}, ptr {base}, i64 {index}")

    def load(self, kind: str, address: str, align: int) -> str:
        return self.emit(f"load {kind}, ptr {address}, align {align}")

    def store(self, kind: str, value: str, address: str, align: int) -> None:
        self.do(f"store {kind} {value}, ptr {address}, align {align}")

    def splat(self, vector: str, scalar: str) -> str:
        """A vector with ``scalar`` (an SSA name) in every lane; ``vector`` like <8 x float>."""
        lanes, kind = parse_vector(vector)
        one = self.emit(f"insertelement {vector} poison, {kind} {scalar}, i64 0")
        return self.emit(
            f"shufflevector {vector} {one}, {vector} poison, <{lanes} x i32> zeroinitializer"
        )

    def render(self, returns: str = "ret void") -> str:
        """The whole definition."""
        params = ", ".join(f"{kind} %{name}" for kind, name in self.params)
        head = f"define {self.linkage} void @{self.name}({params}) {self.attributes} {{"
        return "\n".join([head, *self._lines, "  " + returns, "}", ""])


_VECTOR = re.compile(r"<(\d+) x (\w+)>")


def parse_vector(kind: str) -> tuple[int, str]:
    """(lanes, element type) of ``<8 x float>``."""
    found = _VECTOR.fullmatch(kind)
    if found is None:
        raise ValueError(f"{kind!r} is not a vector type")
    return int(found[1]), found[2]
