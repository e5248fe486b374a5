"""Turning a set of nodes into one ``fused`` node with a body."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.graph import Graph, Value


def build_region(graph: Graph, members: Sequence[str], kind: str) -> Graph:
    """The graph with ``members`` (in topological order) replaced by one ``fused`` node.

    Operands are the values from outside in order of first use; 0-d constants move into the body.
    Results are the members' values that are used outside. No path may lead from a member over a
    node outside back to a member.
    """
    new = graph.copy()
    inside = set(members)
    body = Graph(kind)
    env: dict[Value, Value] = {}
    operands: list[Value] = []
    for name in members:
        node = new.node(name)
        for v in node.operands:
            if v.node in inside or v in env:
                continue
            producer = new.node(v)
            if producer.op == "constant" and producer.attrs["value"].ndim == 0:
                value = producer.attrs["value"]
                env[v] = body.add("constant", name=producer.name, value=value)
            elif producer.op == "extent":
                env[v] = body.add("extent", name=producer.name, **producer.attrs)
            else:
                path = str(len(operands))
                env[v] = body.add("input", name="arg" + path, path=path, type=new.type(v))
                operands.append(v)
        result = body.add(
            node.op,
            *(env[v] for v in node.operands),
            name=node.name,
            source=node.source,
            **node.attrs,
        )
        results = (result,) if isinstance(result, Value) else result
        env.update(zip(node.values, results, strict=True))
    escaping = [
        v
        for name in members
        for v in new.node(name).values
        if new.is_result(v) or any(u.name not in inside for u in new.users(v))
    ]
    body.outputs = {str(i): env[v] for i, v in enumerate(escaping)}
    last = new.node(members[-1])
    result = new.add(
        "fused", *operands, name="fused_" + last.op, source=last.source, kind=kind, body=body
    )
    results = (result,) if isinstance(result, Value) else result
    for old, value in zip(escaping, results, strict=True):
        new.replace_uses(old, value)
    for name in reversed(members):
        new.erase(name)
    return new
