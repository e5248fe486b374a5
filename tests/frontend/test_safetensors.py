"""nw.load of .safetensors files, which are written here byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]], **extra: Any) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, (dtype, shape, data) in tensors.items():
        offsets = [len(content), len(content) + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets, **extra}
        content += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


def test_every_dtype_is_read(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0], [0.0, 3.0]])
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
             "I8": "i1", "BOOL": "?"}  # fmt: skip
    tensors = {k: (k, [2, 2], values.astype(d).tobytes()) for k, d in kinds.items()}
    upper = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    tensors["BF16"] = ("BF16", [2, 2], upper.tobytes())
    tensors["scalar"] = ("U8", [], b"\x07")
    tensors["empty"] = ("F32", [0, 3], b"")
    found = nw.load(write(tmp_path / "a.safetensors", tensors))
    for name, dtype in kinds.items():
        assert found[name].tolist() == values.astype(dtype).tolist()
    assert found["BF16"].tolist() == values.tolist()
    assert (found["BF16"].dtype, found["F16"].dtype) == (nw.float32, nw.float32)
    assert found["scalar"].item() == 7 and found["empty"].shape == (0, 3)


def test_a_state_dict_loads_into_a_module(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    weight = np.array([[3.0, 4.0]], "<f4")
    state = {"weight": ("F32", [1, 2], weight.tobytes()), "bias": ("F32", [1], b"\0" * 4)}
    model.load_state_dict(nw.load(write(tmp_path / "a.safetensors", state)))
    assert model(nw.ones(1, 2)).item() == 7.0
    with nw.no_grad():
        model.weight.zero_()  # the memory is the tensor's own


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": ("F8_E4M3", [1], b"\0")}, "'w' has dtype F8_E4M3; those that can be read"),
        ({"w": ("F32", [2], b"\0" * 4)}, r"'w' of shape \[2\] does not fit bytes 0 to 4"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, tensors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nw.load(write(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize("data", [b"", b"\x02\0\0", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]"])
def test_a_damaged_file_is_a_value_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.safetensors: not a checkpoint.*header"):
        nw.load(path)
