"""Writing LLVM IR as text: a function under construction, loops with carried values.

Kernels are built as strings because that is an order of magnitude faster than building llvmlite
objects, and because what is printed is what was written. Every ``emit`` returns the SSA name that
it defines.
"""

from __future__ import annotations

import hashlib
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
        self._computed: tuple[str, str] | None = None

    @property
    def block(self) -> str:
        """The block that is being written."""
        return self._block

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

    @contextmanager
    def table(self) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        """``(address, items)`` of constants, one behind the other; fill in (type, value) pairs.

        The address is opaque, so loads from the table stay in the block where they are written:
        no pass hoists them out of loops, merges them with others or replaces them by constants.
        ``follow`` a table's uses with the value that they gave: the next table of the block will be
        read after it.
        """
        items: list[tuple[str, str]] = []
        address, at = self.fresh("table"), len(self._lines)
        before, self._computed = self._computed, None
        yield address, items
        if not items:
            return
        kinds = ", ".join(kind for kind, _ in items)
        values = f"<{{ {kinds} }}> <{{ {', '.join(' '.join(item) for item in items)} }}>"
        name = f"@table_{hashlib.sha256(values.encode()).hexdigest()[:16]}"
        self.declare(f"{name} = private unnamed_addr constant {values}, align 64")
        after = before[1] if before is not None and before[0] == self._block else ""
        self._lines.insert(at, f"  {address} = {self._opaque('ptr', name, after)}")

    def opaque(self, kind: str, value: str) -> str:
        """``value``, an integer or a pointer, of which LLVM knows nothing: what is computed from
        it is not computed before, and not taken from what was computed before."""
        return self.emit(self._opaque(kind, value))

    def _opaque(self, kind: str, value: str, after: str = "") -> str:
        """An empty instruction. The number makes each another one: LLVM could merge equal ones."""
        self._counter += 1
        constraints, operands = "=r,0,i", f"{kind} {value}, i64 {self._counter}"
        if after:
            constraints, operands = f"{constraints},X", f"{operands}, {after}"
        return f'call {kind} asm sideeffect "", "{constraints}"({operands}) memory(none)'

    def follow(self, kind: str, value: str) -> None:
        """Has the next table of this block read after ``value``, of type ``kind``, is computed.

        LLVM's scheduler would interleave independent computations until registers run out.
        """
        if kind.startswith("<"):
            # One lane stands for the vector, which may be wider than a register: LLVM aborts the
            # process if an assembly operand does not fit one.
            value = self.emit(f"extractelement {kind} {value}, i64 0")
            kind = parse_vector(kind)[1]
        self._computed = (self._block, f"{kind} {value}")

    def element(self, base: str, kind: str, index: str | int) -> str:
        """Address of element ``index`` of an array of ``kind`` at ``base``."""
        return self.emit(f"getelementptr inbounds {kind}, ptr {base}, i64 {index}")

    def load(self, kind: str, address: str, align: int) -> str:
        return self.emit(f"load {kind}, ptr {address}, align {align}")

    def store(self, kind: str, value: str, address: str, align: int) -> None:
        self.do(f"store {kind} {value}, ptr {address}, align {align}")

    def prefetch(self, address: str, write: bool = False, level: int = 1) -> None:
        """Asks for the cache line of an address, which need not exist, to read or ``write`` it.

        ``level`` is the cache that it shall come to.
        """
        self.call(
            "void", "llvm.prefetch.p0",
            ("ptr", address), ("i32", str(int(write))), ("i32", str(4 - level)), ("i32", "1"),
        )  # fmt: skip

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
