"""Places of a memory plan: tensors of their own, and columns of wider ones."""

import numpy as np

from netwright.ir.graph import Graph
from netwright.ir.plan import Location, Step
from netwright.ir.types import Dim, SlicedType, TensorType, float32, sliced

N = Dim(1)


def test_strides_are_those_of_numpy() -> None:
    whole = np.zeros((2, 3, 5, 8), np.float32)
    assert Location("batch").strides(whole.shape, 4) == whole.strides
    part = whole[..., 2:6]
    place = Location("batch", 64, start=8, pitch=32)
    assert place.strides(part.shape, 4) == part.strides
    assert place.strides((5,), 4) == (4,)
    assert place.strides((), 4) == ()


def test_widths_are_counted_in_elements() -> None:
    graph = Graph()
    x = graph.add("input", path="x", type=TensorType(float32, (N, 4)))
    node = graph.node(graph.add("neg", x))
    own, part = Location("batch"), Location("batch", 0, 16, 40)
    assert Step(node, (own,), (own,)).widths([graph.type(x)]) == ()
    assert Step(node, (own,), (part,)).widths([graph.type(x)]) == (0, 10)


def test_a_sliced_type_is_another_type_with_another_pitch() -> None:
    kind = TensorType(float32, (N, 7, 4))
    part = sliced(kind, 10)
    assert kind.pitch == 4 and part.pitch == 10
    assert part != kind and part == SlicedType(float32, (N, 7, 4), 10)
    assert part.at(3) == SlicedType(float32, (3, 7, 4), 10)
    assert sliced(kind, 0) is kind
    assert str(part) == "f32[N,7,4] of 10 columns"
