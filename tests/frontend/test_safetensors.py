"""Reading safetensors: files written here byte by byte, by the library, and damaged ones."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3) / 7


def file_of(entries: dict[str, tuple[str, list[int], bytes]], **more: Any) -> bytes:
    header: dict[str, Any] = dict(more)
    data = b""
    for name, (kind, shape, elements) in entries.items():
        offsets = [len(data), len(data) + len(elements)]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        data += elements
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def whole() -> bytes:
    half = WEIGHT.astype(np.float16)
    upper = (WEIGHT.view(np.uint32) >> 16).astype("<u2")
    entries = {
        "weight": ("F32", [2, 3], WEIGHT.tobytes()),
        "count": ("I64", [], np.int64(5).tobytes()),
        "mask": ("BOOL", [2], b"\x01\x00"),
        "half": ("F16", [2, 3], half.tobytes()),
        "brain": ("BF16", [2, 3], upper.tobytes()),
        "none": ("F64", [0, 4], b""),
    }
    return file_of(entries, __metadata__={"format": "pt"})


def test_tensors_come_with_names_shapes_and_dtypes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole())
    for found in (nw.load(path), nw.load(str(path)), nw.load(io.BytesIO(whole()))):
        assert list(found) == ["weight", "count", "mask", "half", "brain", "none"]
        np.testing.assert_array_equal(found["weight"].numpy(), WEIGHT)
        assert (found["count"].item(), found["count"].dtype) == (5, nw.int64)
        assert found["mask"].tolist() == [True, False]
        assert found["none"].shape == (0, 4)
        assert {found[name].dtype for name in ("half", "brain")} == {nw.float32}
        np.testing.assert_array_equal(found["half"].numpy(), WEIGHT.astype(np.float16))
        np.testing.assert_allclose(found["brain"].numpy(), WEIGHT, rtol=1 / 128)


def test_a_model_loads_and_its_weights_can_be_trained(tmp_path: Path) -> None:
    entries = {"weight": ("F32", [2, 3], WEIGHT.tobytes())}
    (tmp_path / "m.safetensors").write_bytes(file_of(entries))
    model = nn.Linear(3, 2, bias=False)
    model.load_state_dict(nw.load(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(model.weight.detach().numpy(), WEIGHT)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (whole()[:-3], "'brain' are not complete"),
        (whole()[:40], "header has"),
        (file_of({"w": ("F8_E4M3", [1], b"0")}), "'w' has elements of type F8_E4M3"),
        (file_of({"w": ("F32", [2], b"0000")}), "'w' are not complete"),
        ((5).to_bytes(8, "little") + b"{oops", "damaged"),
    ],
    ids=["short", "header", "type", "size", "json"],
)
def test_a_damaged_file_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)bad\.safetensors: .*{words}"):
        nw.load(path)


def test_files_of_the_library_load(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="writes the file")
    path = tmp_path / "model.safetensors"
    library.save_file({"b": WEIGHT, "a": np.arange(3)}, path)
    found = nw.load(path)
    np.testing.assert_array_equal(found["b"].numpy(), WEIGHT)
    assert found["a"].tolist() == [0, 1, 2]
