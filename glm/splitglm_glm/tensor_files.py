"""The safetensors files of a checkpoint: found, bounded, checked and read one tensor at a time with numpy alone.

Format: https://github.com/huggingface/safetensors (8 bytes little-endian header length, JSON header, data). The header
is read here and not by the safetensors package for two reasons: everything in it is checked before it is used (length,
names, shapes, offsets without overlap or holes), and numpy has no bfloat16, so tensors are widened to float32 from
their raw bits. Data is read with plain reads, not mapped: a file that shrinks gives an error, not a bus fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from splitglm_core.errors import ModelInvalid, ModelNotFound
from splitglm_glm.strict_json import parse_object, read_object

INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
MAX_INDEX_BYTES: Final = 16 << 20
MAX_HEADER_BYTES: Final = 8 << 20  # a 1024-layer model needs about 2 MB; upstream allows 100 MB
MAX_TENSORS: Final = 20_000
MAX_FILES: Final = 1024
MAX_DIMENSIONS: Final = 8

_STORED: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # raw bits; see _widen
}
_PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a file. ``offset`` counts bytes from the start of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def find_tensor_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of the checkpoint in ``directory``, sorted by name.

    Raises:
        ModelNotFound: no such directory.
        ModelInvalid: no safetensors file, only pickled weights, or an index that names anything but plain files here.
    """
    if not directory.is_dir():
        raise ModelNotFound(f"{directory} is not a directory", "name a directory that holds a GLM checkpoint")
    if (directory / INDEX_FILE).exists():
        names = sorted(set(_read_index(directory).values()))
    else:
        names = sorted(path.name for path in directory.glob("*.safetensors"))
        if SINGLE_FILE in names:
            names = [SINGLE_FILE]
        elif len(names) > 1:
            raise ModelInvalid(f"{directory} has several safetensors files but no {INDEX_FILE}", "fetch the index too")
    if not names:
        pickled = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLED)
        if pickled:
            raise ModelInvalid(
                f"{directory} holds its weights as pickle ({pickled[0]}), which can run code when it is read",
                "fetch the safetensors files of this model instead",
            )
        raise ModelInvalid(f"{directory} holds no safetensors file", "fetch the weights of the model")
    return tuple(contained_file(directory, name) for name in names)


def contained_file(directory: Path, name: str) -> Path:
    """``directory / name`` if that is a regular file whose bytes lie in the directory.

    A symbolic link may stay inside the directory, or lead to the blob folder of the same repository in a Hugging Face
    cache (``snapshots/<revision>/x -> ../../blobs/y``); any other is refused.

    Raises:
        ModelInvalid: missing, not a plain name, not a regular file, or outside.
    """
    if not name or name in (".", "..") or any(c in name for c in "/\\\0") or len(name) > 255:
        raise ModelInvalid(f"{name[:200]!r} is not a plain file name", "fetch the checkpoint again")
    path = directory / name
    root = directory.resolve()
    homes = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    target = path.resolve()
    if not any(target.is_relative_to(home) for home in homes):
        raise ModelInvalid(f"{path} leads outside the checkpoint's directory", "copy the file itself there")
    if not target.is_file():
        raise ModelInvalid(f"{path} is missing or not a regular file", "fetch the checkpoint again")
    return path


def read_headers(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by name, from the headers alone.

    Raises:
        ModelInvalid: a malformed file, a tensor stored twice, or an index that contradicts the files.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in find_tensor_files(directory):
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise ModelInvalid(f"tensor {name!r} is in both {tensors[name].path.name} and {path.name}")
            tensors[name] = tensor
    if (directory / INDEX_FILE).exists():
        for name, file in _read_index(directory).items():
            if name not in tensors or tensors[name].path.name != file:
                raise ModelInvalid(
                    f"{INDEX_FILE} promises tensor {name[:200]!r} in {file}, which does not hold it",
                    "fetch the checkpoint again",
                )
    return tensors


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, their place checked against the file's length.

    Raises:
        ModelInvalid: any departure from the format, or a dtype other than F32, F16, BF16.
    """
    try:
        with path.open("rb") as file:
            file_bytes = path.stat().st_size
            prefix = file.read(8)
            header_bytes = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or header_bytes > file_bytes - 8:
                raise _damaged(path, f"its {file_bytes} bytes end before the header does")
            if header_bytes > MAX_HEADER_BYTES:
                raise _damaged(path, f"its header of {header_bytes} bytes is longer than {MAX_HEADER_BYTES}")
            raw = parse_object(file.read(header_bytes), f"the header of {path.name}")
    except OSError as error:
        raise ModelInvalid(f"{path} cannot be read: {error.strerror}", "check its permissions") from None
    raw.pop("__metadata__", None)
    if len(raw) > MAX_TENSORS:
        raise _damaged(path, f"it lists {len(raw)} tensors, more than {MAX_TENSORS}")
    data_start = 8 + header_bytes
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, StoredTensor] = {}
    for name, entry in raw.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        spans.append((begin, end, name))
        tensors[name] = StoredTensor(path, dtype, shape, data_start + begin)
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise _damaged(path, f"tensor {name[:200]!r} overlaps another or leaves a hole before it")
        position = end
    if position != file_bytes - data_start:
        raise _damaged(path, f"it holds {file_bytes - data_start} bytes of data where its header lists {position}")
    return tensors


def read_tensor(tensor: StoredTensor, name: str) -> np.ndarray:
    """The tensor as a fresh float32 array; F16 and BF16 widen exactly.

    Raises:
        ModelInvalid: the file is shorter than its header said, or a value is not finite.
    """
    count = math.prod(tensor.shape)
    try:
        stored = np.fromfile(tensor.path, dtype=_STORED[tensor.dtype], count=count, offset=tensor.offset)
    except OSError as error:
        raise ModelInvalid(f"{tensor.path} cannot be read: {error.strerror}", "check its permissions") from None
    if stored.size != count:
        raise _damaged(tensor.path, f"it ended inside tensor {name!r}")
    values = _widen(stored).reshape(tensor.shape)
    # min and max carry NaN and infinities out without a mask as large as the tensor.
    with np.errstate(invalid="ignore"):
        finite = count == 0 or (math.isfinite(values.min()) and math.isfinite(values.max()))
    if not finite:
        raise ModelInvalid(f"tensor {name!r} of {tensor.path.name} holds NaN or infinity", "fetch the checkpoint again")
    return values


def read_rows(tensor: StoredTensor, name: str, start: int, stop: int) -> np.ndarray:
    """Rows ``[start, stop)`` of a tensor as a fresh float32 array, without reading the others.

    Raises:
        ModelInvalid: the file is shorter than its header said, or a value is not finite.
    """
    row_bytes = math.prod(tensor.shape[1:]) * _STORED[tensor.dtype].itemsize
    start, stop, _ = slice(start, stop).indices(tensor.shape[0])
    count = max(0, stop - start)  # a negative count would make numpy read to the end of the file
    rows = StoredTensor(tensor.path, tensor.dtype, (count, *tensor.shape[1:]), tensor.offset + start * row_bytes)
    return read_tensor(rows, name)


def _widen(stored: np.ndarray) -> np.ndarray:
    if stored.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        bits = stored.astype("<u4")
        bits <<= 16
        return bits.view("<f4")
    return stored.astype(np.float32, copy=False)


def _entry(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"the entry of tensor {name[:200]!r} is not dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _STORED:
        raise ModelInvalid(
            f"tensor {name[:200]!r} of {path.name} has dtype {str(dtype)[:20]!r}; known are F32, F16, BF16",
            "use the unquantised checkpoint; splitglm quantises by itself",
        )
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS or not _naturals(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor {name[:200]!r} has an impossible shape or place")
    begin, end = offsets
    if end - begin != math.prod(shape) * _STORED[dtype].itemsize:  # exact: Python integers do not overflow
        raise _damaged(path, f"tensor {name[:200]!r} has a shape that does not fill its {end - begin} bytes")
    return dtype, tuple(shape), begin, end


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _read_index(directory: Path) -> dict[str, str]:
    index = read_object(contained_file(directory, INDEX_FILE), MAX_INDEX_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelInvalid(f"{INDEX_FILE} has no weight_map", "fetch the index again")
    files = set(map(str, weight_map.values()))
    if len(weight_map) > MAX_TENSORS or len(files) > MAX_FILES:
        raise ModelInvalid(f"{INDEX_FILE} lists {len(weight_map)} tensors in {len(files)} files, which is too many")
    for file in weight_map.values():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise ModelInvalid(f"{INDEX_FILE} names {str(file)[:200]!r}, which is not a safetensors file")
    return weight_map


def _damaged(path: Path, why: str) -> ModelInvalid:
    return ModelInvalid(f"{path.name} is not a whole safetensors file: {why}", "fetch the file again")
