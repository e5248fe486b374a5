"""save and load: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import io
import json
import math
import os
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netwright.errors import UnsupportedError
from netwright.frontend import nn
from netwright.frontend.creation import ones, tensor
from netwright.frontend.optim import SGD, Adam, lr_scheduler
from netwright.frontend.serialization import load, save
from netwright.frontend.tensor import Tensor


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b) or isinstance(a, dict)
    if isinstance(a, Tensor):
        assert a.dtype is b.dtype
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for p, q in zip(a, b, strict=True):
            assert_same(p, q)
    else:
        assert a == b or (a != a and b != b)


NEST = {
    "weights": {"0.weight": ones(2, 3), "0.bias": tensor([1.5, math.inf, math.nan])},
    "epoch": 3,
    "big": 2**70,
    "rates": [0.1, 1e-300, math.inf, math.nan, -0.0],
    "betas": (0.9, 0.999),
    "text": "ä \n \0",
    "none": None,
    "flag": True,
    1: {2: [], 3: (), 4: {}},
    False: "a bool as key",
    "strange/../key\\\n": tensor([1]),
    "array": np.arange(6, dtype=">i2").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": tensor(np.arange(10))[::3],
    "scalar": np.float32(0.1),
    "0-d": tensor(2.5),
    "empty": tensor(np.zeros((0, 3), np.float32)),
    "bools": tensor([True, False]),
    "bytes": tensor(np.array([1, 255], np.uint8)),
}


def test_nests_come_back_equal(tmp_path: Path) -> None:
    save(NEST, tmp_path / "nest.npz")
    assert_same(load(tmp_path / "nest.npz"), NEST)


@pytest.mark.parametrize("value", [ones(2), 3, None, "text", [], {}, np.ones(2), np.int64(4)])
def test_any_value_may_be_the_root(value: Any) -> None:
    file = io.BytesIO()
    save(value, file)
    assert_same(load(file), value)


def test_names_that_would_collide_are_kept_apart(tmp_path: Path) -> None:
    nest = {"a/b": ones(1), "a": {"b": tensor([2.0])}, "array_1": tensor([3.0]), "1": ones(1)}
    nest[1] = tensor([4.0])
    save(nest, tmp_path / "x")
    assert_same(load(tmp_path / "x"), nest)


def test_a_parameter_comes_back_as_a_tensor_without_gradient(tmp_path: Path) -> None:
    layer = nn.Linear(2, 3)
    save({"w": layer.weight}, tmp_path / "x")
    found = load(tmp_path / "x")["w"]
    assert type(found) is Tensor and not found.requires_grad
    np.testing.assert_array_equal(found.numpy(), layer.weight.detach().numpy())


def test_training_continues_from_a_file_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def make(seed: float) -> Any:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
        for p in model.parameters():
            p.data.fill_(seed)
        optimizer = Adam(model.parameters(), lr=0.1, amsgrad=True)
        return model, optimizer, lr_scheduler.MultiStepLR(optimizer, [3, 6])

    x = tensor(np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32))

    def train(model: Any, optimizer: Any, schedule: Any) -> list[float]:
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = ((model(x) - x.sum(dim=1, keepdim=True)) ** 2).mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return losses

    parts = make(0.3)
    train(*parts)
    path = tmp_path / "checkpoint.npz"
    save({n: p.state_dict() for n, p in zip("mos", parts, strict=True)}, path)
    resumed = make(0.9)
    state = load(path, map_location="cpu", weights_only=True)
    for name, part in zip("mos", resumed, strict=True):
        part.load_state_dict(state[name])
    assert train(*resumed) == train(*parts)


def test_a_state_dict_keeps_its_metadata_and_numpy_reads_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    save(model.state_dict(), tmp_path / "model.npz")
    found = load(tmp_path / "model.npz")
    assert isinstance(found, OrderedDict)
    assert found._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]
    with np.load(tmp_path / "model.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["0.running_var"], np.ones(2, np.float32))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_archive_of_numpy_is_a_dict_of_tensors(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "x.npz", **{"0.weight": np.ones((2, 2), ">f4"), "n": np.int64(3)})
    found = load(tmp_path / "x.npz")
    assert_same(found, {"0.weight": ones(2, 2), "n": tensor(3)})


def test_equal_content_gives_equal_bytes() -> None:
    files = io.BytesIO(), io.BytesIO()
    for file in files:
        save(NEST, file)
    assert files[0].getvalue() == files[1].getvalue()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"model": nn.Linear(1, 1)}, TypeError, r"\['model'\]: Linear .*save its state_dict\(\)"),
        ({"o": [SGD([ones(1)])]}, TypeError, r"\['o'\]\[0\]: SGD .*state_dict"),
        ({"a": {"f": print}}, TypeError, r"key \['a'\]\['f'\]: builtin_function_or_method"),
        ({"a": {(1, 2): 3}}, TypeError, r"\['a'\]\[\(1, 2\)\]: a tuple as a key"),
        ({"a": {1.5: 3}}, TypeError, "a float as a key"),
        ({"s": {1, 2}}, TypeError, r"\['s'\]: set"),
        ({"o": np.array([None])}, TypeError, r"\['o'\]: an array of object"),
        ({"o": np.array(["a"])}, TypeError, r"\['o'\]: an array of <U1"),
        (object(), TypeError, "cannot save the object: object"),
    ],
)
def test_what_cannot_be_saved_is_named_and_the_old_file_kept(
    tmp_path: Path, value: Any, error: type[Exception], message: str
) -> None:
    path = tmp_path / "x.npz"
    save({"old": 1}, path)
    with pytest.raises(error, match=message):
        save(value, path)
    assert load(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["x.npz"]


def test_a_nest_that_contains_itself_is_an_error() -> None:
    nest: dict[str, Any] = {"a": {}}
    nest["a"]["b"] = nest
    with pytest.raises(ValueError, match=r"\['a'\]\['b'\]: it contains itself"):
        save(nest, io.BytesIO())
    shared = ones(1)
    save({"a": [shared, shared]}, io.BytesIO())


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    save({"old": 1}, path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space left"):
        save({"new": ones(2)}, path)
    monkeypatch.undo()
    assert load(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["x.npz"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "x.npz"
    save(1, target)
    link = tmp_path / "latest.npz"
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("this system does not let the user make symbolic links")
    save(2, link)
    assert link.is_symlink() and load(target) == 2


def test_missing_folders_and_files_are_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save(1, tmp_path / "no" / "x.npz")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "x.npz")


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in members.items():
            made.writestr(name.replace("__", "."), content)
    return file.getvalue()


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def structure(content: Any, **more: Any) -> bytes:
    return json.dumps({"format": 1, "content": content, **more}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a zip file"),
        (b"not a zip", "not a zip file"),
        (archive(), "without netwright.json"),
        (archive(readme=b"hello"), "without netwright.json"),
        (archive(data__pkl=b"hello"), "PyTorch checkpoint"),
        (archive(x__npy=b"hello"), "damaged"),
        (archive(x__npy=npy(np.ones(9))[:-1]), "x: 72 bytes expected, 71 found"),
        (archive(x__npy=npy(np.array([print], object), True)), "x: elements of object"),
        (archive(netwright__json=b"{"), "damaged"),
        (archive(netwright__json=b"\xff"), "damaged"),
        (archive(netwright__json=b"3"), "format is not 1"),
        (archive(netwright__json=structure(1, format=2)), "format is not 1"),
        (archive(netwright__json=b"[" * 100000), "damaged"),
        (archive(netwright__json=structure({"tensor": "x"})), "no item named 'x.npy'"),
        (archive(netwright__json=structure({"tensor": 5})), "no item named"),
        (archive(netwright__json=structure({"pickle": "x"})), "unknown entry 'pickle'"),
        (archive(netwright__json=structure({})), "empty entry"),
        (archive(netwright__json=structure({"dict": [1]})), "damaged"),
        (archive(netwright__json=structure({"dict": [[[], 1]]})), "unhashable"),
        (archive(netwright__json=structure({"list": 4})), "damaged"),
        (archive(netwright__json=structure({"state_dict": []})), "metadata"),
        (
            archive(netwright__json=structure({"tensor": "x"}), x__npy=npy(np.ones(2, "c8"))),
            "damaged",
        ),
    ],
)
def test_other_and_damaged_files_are_clear_errors(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.npz: not a checkpoint.*{message}"):
        load(path)


def test_a_header_with_an_absurd_shape_allocates_nothing(tmp_path: Path) -> None:
    huge = npy(np.ones(2)).replace(b"(2,), }         ", b"(2000000000000,)}")
    assert len(huge) == len(npy(np.ones(2))) + 1
    with pytest.raises(ValueError, match="damaged"):
        load(io.BytesIO(archive(x__npy=huge)))


def test_flipped_and_missing_bytes_never_give_wrong_numbers() -> None:
    file = io.BytesIO()
    nest = {"w": ones(3, 5), "step": 7}
    save(nest, file)
    good = file.getvalue()
    rng = random.Random(0)
    for trial in range(400):
        bad = bytearray(good)
        if trial % 4:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        else:
            del bad[rng.randrange(len(bad)) :]
        try:
            found = load(io.BytesIO(bytes(bad)))
        except ValueError as error:
            assert "damaged" in str(error)
        else:
            assert_same(found, nest)  # a byte that means nothing, such as the file's attributes


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    save(1, tmp_path / "x")
    with pytest.raises(UnsupportedError, match="never reads pickles"):
        load(tmp_path / "x", weights_only=False)
    with pytest.raises(RuntimeError):
        load(tmp_path / "x", map_location="cuda")
