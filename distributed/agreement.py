"""Proof that all processes have the same parameters: a hash of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from ..frontend.tensor import Tensor
from .collectives import gather_objects
from .process_group import Group


def digest(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and elements, in hexadecimal."""
    array = tensor._array
    found = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    found.update(array.tobytes())
    return found.hexdigest()


def check_equal(group: Group, tensors: Mapping[str, Tensor], when: str) -> str:
    """The digest of all tensors, in their order. RuntimeError if it is not the same on every rank,
    naming the first that differs; ``when`` is for that message."""
    mine = {name: digest(tensor) for name, tensor in tensors.items()}
    whole = hashlib.sha256("".join(f"{n} {d}\n" for n, d in mine.items()).encode()).hexdigest()
    if len(set(gather_objects(group, whole, "verify()"))) == 1:
        return whole
    everybody = gather_objects(group, mine, "verify()")
    for name in dict.fromkeys(n for one in everybody for n in one):
        others = [r for r, one in enumerate(everybody) if one.get(name) != everybody[0].get(name)]
        if others:
            raise RuntimeError(
                f"{when} the parameter {name!r} of rank {others[0]} differs from that of rank 0 "
                f"({len(others)} of {group.size} ranks differ): something has changed it outside "
                "of the step, or the ranks run different programs"
            )
    raise RuntimeError(f"{when} the ranks have the same parameters in different orders")


def check_same_model(group: Group, tensors: Mapping[str, Tensor]) -> None:
    """RuntimeError unless names, dtypes and shapes are the same on every rank."""
    mine = [(name, str(t.dtype), list(t.shape)) for name, t in tensors.items()]
    everybody = gather_objects(group, mine, "DataParallel()")
    for rank, other in enumerate(everybody):
        if other == everybody[0]:
            continue
        pairs = zip(everybody[0], other, strict=False)
        first = next((f"{a} and {b}" for a, b in pairs if a != b), "one has more than the other")
        raise RuntimeError(
            f"DataParallel: ranks 0 and {rank} have different models, with {len(everybody[0])} and "
            f"{len(other)} parameters and buffers: {first}"
        )
