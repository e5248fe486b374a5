"""Cutting the text of a module into modules that can be compiled one by one, and linked together.

A module of ours is a list of functions, tables and ``declare`` lines; nothing that LLVM does to it
looks across functions. The cut depends on the text alone, so the object code of a program is the
same however many processes made it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

WORTH_CUTTING = 400_000
"""Characters of IR below which a module stays whole: LLVM takes about 0.27 s for them, a worker
80 ms to start."""

PART = 80_000
"""Characters of IR that a part has at least, about: some 50 ms of work."""

_ITEM = re.compile(
    r"^(?:(?P<define>define\b[^@\n]*)@(?P<function>[\w.$-]+)\((?P<rest>[^\n]*)\{\n.*?^\}$"
    r"|@(?P<table>[\w.$-]+) *=[^\n]*$"
    r"|(?P<declare>declare\b[^@\n]*@[\w.$-]+\([^\n]*)$)",
    re.MULTILINE | re.DOTALL,
)
_REFERENCE = re.compile(r"@([\w.$-]+)")
_PARAMETER = re.compile(r" %[\w.$-]+(?=[,)])")
_INTERNAL = re.compile(r"\b(?:internal|private)\b")


def partition(text: str) -> list[str]:
    """Modules whose object files, linked together, are that of ``text``.

    Just ``text`` if it is small or holds something that this does not know. Functions keep their
    order. Each internal function goes with its only user; one that several parts use becomes
    visible among them, and hidden to others. Tables are copied into every part that reads them.
    """
    if len(text) < WORTH_CUTTING:
        return [text]
    module = _parse(text)
    if module is None:
        return [text]
    parts = _gather(module)
    return [module.part(names) for names in parts] if len(parts) > 1 else [text]


@dataclass
class _Module:
    functions: dict[str, str] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    declares: dict[str, str] = field(default_factory=dict)
    uses: dict[str, list[str]] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    def internal(self, name: str) -> bool:
        return bool(_INTERNAL.search(self.heads[name].partition("@")[0]))

    def part(self, names: list[str]) -> str:
        """The module of some functions, with all that they refer to."""
        inside = set(names)
        others = {u for name in names for u in self.uses[name]} - inside
        lines = [self.tables[u] for u in self.tables if u in others]
        for name in names:
            body = self.functions[name]
            lines.append(_INTERNAL.sub("hidden", body, count=1) if name in self.shared else body)
        for name in sorted(others):
            if name in self.declares:
                lines.append(self.declares[name])
            elif name in self.heads:
                lines.append(self._declaration(name))
        return "\n".join([*lines, ""])

    def _declaration(self, name: str) -> str:
        head = _PARAMETER.sub("", self.heads[name])
        return _INTERNAL.sub("hidden", head).replace("define", "declare", 1)


def _parse(text: str) -> _Module | None:
    """The items of a module; None if there is anything else, or two of a name."""
    module, at = _Module(), 0
    for item in _ITEM.finditer(text):
        if text[at : item.start()].strip():
            return None
        at = item.end()
        function, table, declare = item.group("function", "table", "declare")
        if function is not None:
            if function in module.functions:
                return None
            module.functions[function] = item[0]
            module.heads[function] = f"{item['define']}@{function}({item['rest']}".rstrip()
            module.uses[function] = list(dict.fromkeys(_REFERENCE.findall(item[0])))
        elif table is not None:
            if not _INTERNAL.search(item[0].partition("=")[2]):
                return None
            module.tables[table] = item[0]
        else:
            module.declares[_REFERENCE.findall(declare)[0]] = declare
    return None if text[at:].strip() else module


def _gather(module: _Module) -> list[list[str]]:
    """The names of the functions of each part, in order; notes which ones are shared by parts."""
    users: dict[str, list[str]] = {name: [] for name in module.functions}
    for name, used in module.uses.items():
        for other in used:
            if other in users and other != name:
                users[other].append(name)
    leader: dict[str, str] = {}
    for name in reversed(module.functions):  # users stand behind what they use
        leaders = {leader.get(user, user) for user in users[name]}
        alone = module.internal(name) and len(leaders) == 1
        leader[name] = leaders.pop() if alone else name
    units: dict[str, list[str]] = {}
    for name in module.functions:
        units.setdefault(leader[name], []).append(name)
    parts: list[list[str]] = []
    room = 0
    for names in units.values():
        if room <= 0:
            parts.append([])
            room = PART
        parts[-1] += names
        room -= sum(len(module.functions[name]) for name in names)
    number = {name: i for i, names in enumerate(parts) for name in names}
    for name in module.functions:
        if module.internal(name) and any(number[u] != number[name] for u in users[name]):
            module.shared.add(name)
    return parts
