"""``save`` and ``load``: checkpoints as ``.npz`` files, without pickle.

Format: a zip archive with one ``.npy`` member per array and ``netwright.json``, which holds the
nest around the arrays::

    {"format": 1, "content": NODE}
    NODE = null | true | number | "text"        a value itself
         | {"tensor": MEMBER} | {"array": MEMBER} | {"scalar": MEMBER}
         | {"list": [NODE, ...]} | {"tuple": [NODE, ...]}
         | {"dict": [[KEY, NODE], ...]}         KEY = "text" | number | true
         | {"state_dict": [[KEY, NODE], ...], "metadata": {...}}

A flat state_dict's members have its keys' names, so ``numpy.load`` reads it too; an archive
without ``netwright.json`` loads as a dict of tensors.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tokenize
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from ..errors import UnsupportedError
from . import dispatch, safetensors
from .device import check_device
from .nn.state import StateDict
from .tensor import Tensor

_STRUCTURE = "netwright.json"
_FORMAT = 1
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*")


def save(obj: Any, f: str | os.PathLike[str] | IO[bytes]) -> None:
    """Writes tensors, arrays, numbers, strings and nests of them (dict, list, tuple) to ``f``.

    f: a path, which is replaced only when everything has been written, or a binary file.
    TypeError, naming the key, for anything else, such as a whole Module.
    """
    writer = _Writer()
    content = writer.node(obj, ())
    text = json.dumps({"format": _FORMAT, "content": content})
    if isinstance(f, (str, os.PathLike)):
        with _replacing(os.fspath(f)) as file:
            _write(file, text, writer.arrays)
    else:
        _write(f, text, writer.arrays)


def load(
    f: str | os.PathLike[str] | IO[bytes],
    map_location: Any = None,
    *,
    weights_only: bool | None = None,
) -> Any:
    """Reads what ``save`` wrote, or a safetensors file; runs no code from the file.

    Tensors come back on the CPU without ``requires_grad``. ValueError, with the file's name, if
    the file is damaged or something else.
    """
    if map_location is not None:
        check_device(map_location)
    if weights_only is False:
        raise UnsupportedError("load(weights_only=False): netwright never reads pickles")
    name = os.fspath(f) if isinstance(f, (str, os.PathLike)) else getattr(f, "name", "the file")
    try:
        with _opened(f) as file:
            start = file.read(9)
            file.seek(-len(start), os.SEEK_CUR)
            if safetensors.looks_like_one(start):
                return safetensors.read(file)
            with zipfile.ZipFile(file) as archive:
                return _read(archive)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,  # an encrypted member, too deep a nest, an unknown compression
        tokenize.TokenError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"{name}: not a checkpoint of netwright.save(), or damaged: {error}"
        ) from error


def _opened(
    f: str | os.PathLike[str] | IO[bytes],
) -> contextlib.AbstractContextManager[IO[bytes]]:
    """The file of a path, which is closed afterwards, or ``f`` itself, which is not."""
    return open(f, "rb") if isinstance(f, (str, os.PathLike)) else contextlib.nullcontext(f)


class _Writer:
    """Turns a nest into JSON and collects its arrays by member name."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._open: set[int] = set()

    def node(self, value: Any, path: tuple[Any, ...]) -> Any:
        """The JSON node of a value."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._member(value._eager_array("nw.save()"), path)}
        if isinstance(value, np.ndarray):
            return {"array": self._member(value, path)}
        if isinstance(value, np.generic):
            return {"scalar": self._member(np.asarray(value), path)}
        if id(value) in self._open:
            raise ValueError(f"cannot save {_where(path)}: it contains itself")
        self._open.add(id(value))
        try:
            return self._nest(value, path)
        finally:
            self._open.remove(id(value))

    def _nest(self, value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, Mapping):
            items = [[_key(k, path), self.node(v, (*path, k))] for k, v in value.items()]
            metadata = getattr(value, "_metadata", None)
            if metadata is None:
                return {"dict": items}
            return {"state_dict": items, "metadata": metadata}
        if type(value) in (list, tuple):
            parts = [self.node(v, (*path, i)) for i, v in enumerate(value)]
            return {type(value).__name__: parts}
        hint = "; save its state_dict()" if hasattr(value, "state_dict") else ""
        raise TypeError(
            f"cannot save {_where(path)}: {type(value).__name__} is not a tensor, array, number, "
            f"string, None, dict, list or tuple{hint}"
        )

    def _member(self, array: np.ndarray, path: tuple[Any, ...]) -> str:
        if array.dtype.kind not in "biufc":
            raise TypeError(f"cannot save {_where(path)}: an array of {array.dtype}")
        name = "/".join(str(p) for p in path) or "value"
        if not _PLAIN_NAME.fullmatch(name) or name in self.arrays or ".." in name:
            name = f"array_{len(self.arrays)}"
            while name in self.arrays:
                name += "_"
        self.arrays[name] = array
        return name


def _where(path: tuple[Any, ...]) -> str:
    return "the object" if not path else "key " + "".join(f"[{p!r}]" for p in path)


def _key(key: Any, path: tuple[Any, ...]) -> Any:
    if type(key) in (str, int, bool):
        return key
    raise TypeError(
        f"cannot save {_where((*path, key))}: a {type(key).__name__} as a key; keys must be "
        "strings or integers"
    )


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when it has been written completely."""
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"cannot save to {path}: there is no folder {folder}")
    temporary = f"{target}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _write(file: IO[bytes], structure: str, arrays: dict[str, np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(_STRUCTURE), structure)  # no dates: same bytes each time
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _read(archive: zipfile.ZipFile) -> Any:
    names = archive.namelist()
    if _STRUCTURE not in names:
        return _arrays_alone(archive, names)
    structure = json.loads(archive.read(_STRUCTURE))
    if not isinstance(structure, dict) or structure.get("format") != _FORMAT:
        raise ValueError(f"its format is not {_FORMAT}, the one that this version reads")
    return _rebuild(structure["content"], lambda member: _array(archive, member))


def _arrays_alone(archive: zipfile.ZipFile, names: list[str]) -> dict[str, Tensor]:
    if not names or not all(n.endswith(".npy") for n in names):
        torch = any(n.endswith("data.pkl") for n in names)
        raise ValueError(
            "it is a PyTorch checkpoint, which is a pickle; in PyTorch, write it with "
            "safetensors.torch.save_file(state_dict, path), or with "
            "numpy.savez(path, **{k: v.numpy() for k, v in state_dict.items()})"
            if torch
            else f"a zip archive without {_STRUCTURE}"
        )
    members = [n.removesuffix(".npy") for n in names]
    return {m: dispatch.wrap(dispatch.native(_array(archive, m))) for m in members}


def _rebuild(node: Any, array: Callable[[str], np.ndarray]) -> Any:
    if not isinstance(node, dict):
        return node
    if not node:
        raise ValueError(f"an empty entry in {_STRUCTURE}")
    kind, value = next(iter(node.items()))
    if kind == "tensor":
        return dispatch.wrap(dispatch.native(array(value)))
    if kind == "array":
        return array(value)
    if kind == "scalar":
        return array(value)[()]
    if kind in ("list", "tuple"):
        parts = [_rebuild(v, array) for v in value]
        return parts if kind == "list" else tuple(parts)
    if kind in ("dict", "state_dict"):
        items = {key: _rebuild(v, array) for key, v in value}
        if kind == "dict":
            return items
        state = StateDict(items)
        state._metadata = OrderedDict(node["metadata"])
        return state
    raise ValueError(f"unknown entry {kind!r} in {_STRUCTURE}")


def _array(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """An array, after a check that the archive has as many bytes as its header says."""
    stream = io.BytesIO(archive.read(f"{member}.npy"))
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"{member}: .npy version {version}")
    if dtype.kind not in "biufc":
        raise ValueError(f"{member}: elements of {dtype}")
    expected = dtype.itemsize
    for size in shape:
        expected *= size
    start = stream.tell()
    if len(stream.getbuffer()) - start != expected:
        raise ValueError(
            f"{member}: {expected} bytes expected, {len(stream.getbuffer()) - start} found"
        )
    flat = np.frombuffer(stream.getvalue(), dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C").copy()
