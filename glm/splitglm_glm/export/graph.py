"""Writing one ONNX graph whose large tensors lie in a data file beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from splitglm_core.errors import InternalError
from splitglm_glm.compress.quantise import BlockFormat, Float32, quantise_rows, row_chunks

MICROSOFT = "com.microsoft"
_ALIGNMENT = 4096  # ONNX Runtime maps external tensors; a page-aligned offset maps without a copy
_INLINE_BYTES = 4096  # smaller tensors stay inside the .onnx file
_OPSET, _MICROSOFT_OPSET, _IR_VERSION = 18, 1, 10


RowSource = Callable[[int, int], Float32]  # rows [start, stop) of a matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a data file. ``offset`` and ``length`` are bytes."""

    dtype: np.dtype
    dims: tuple[int, ...]
    offset: int
    length: int


@dataclass(slots=True)
class DataFile:
    """The external data of one or more graphs, written front to back.

    Attributes:
        name: plain file name that the graphs refer to; never a path, so a graph cannot point outside its directory.
        stream: binary file open for writing.
    """

    name: str
    stream: BinaryIO
    offset: int = 0

    def __post_init__(self) -> None:
        if "/" in self.name or "\\" in self.name or self.name in ("", ".", ".."):
            raise InternalError(f"external data must be a plain file name, not {self.name!r}")

    def append(self, dtype: np.dtype, dims: Sequence[int], chunks: Iterable[NDArray[Any]]) -> StoredTensor:
        """Write one tensor given as consecutive pieces of its C-order bytes."""
        padding = -self.offset % _ALIGNMENT
        self.stream.write(bytes(padding))
        start = self.offset = self.offset + padding
        for chunk in chunks:
            contiguous = np.ascontiguousarray(chunk, dtype)
            self.stream.write(contiguous.data)
            self.offset += contiguous.nbytes
        tensor = StoredTensor(dtype=dtype, dims=tuple(dims), offset=start, length=self.offset - start)
        if tensor.length != int(np.prod(tensor.dims)) * dtype.itemsize:
            raise InternalError(f"{tensor.length} bytes written for a tensor of shape {tensor.dims}")
        return tensor

    def append_quantised(self, rows_of: RowSource, n: int, k: int, form: BlockFormat) -> tuple[StoredTensor, ...]:
        """Quantise an ``[n, k]`` matrix a few rows at a time; returns packed, scales and zero points if asymmetric."""
        blocks = form.blocks_of(k)
        scales = np.empty((n, blocks), np.float32)
        zeros = None if form.symmetric else np.empty((n, form.zero_point_bytes(k)), np.uint8)

        def packed_rows() -> Iterable[NDArray[Any]]:
            for rows in row_chunks(n, k):
                quantised = quantise_rows(rows_of(rows.start, rows.stop), form)
                scales[rows] = quantised.scales
                if zeros is not None and quantised.zero_points is not None:
                    zeros[rows] = quantised.zero_points
                yield quantised.packed

        stored = [self.append(np.dtype(np.uint8), (n, blocks, form.block * form.bits // 8), packed_rows())]
        stored.append(self.append(np.dtype(np.float32), scales.shape, (scales,)))
        if zeros is not None:
            stored.append(self.append(np.dtype(np.uint8), zeros.shape, (zeros,)))
        return tuple(stored)

    def append_rows(self, rows_of: RowSource, n: int, k: int) -> tuple[StoredTensor, ...]:
        """Write an ``[n, k]`` float32 matrix a few rows at a time."""
        chunks = (rows_of(rows.start, rows.stop) for rows in row_chunks(n, k))
        return (self.append(np.dtype(np.float32), (n, k), chunks),)


@dataclass(slots=True)
class Graph:
    """Nodes, inputs and outputs of one graph; tensors go inline or into ``data``."""

    data: DataFile
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        """Append a node and return its first output."""
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{outputs[0]}.{op}", domain=domain, **attributes))
        return outputs[0]

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """A small tensor (a norm, a bias, a shape) or, above a page, an external one."""
        if value.nbytes > _INLINE_BYTES:
            return self.external(name, self.data.append(value.dtype, value.shape, (value,)))
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def external(self, name: str, stored: StoredTensor) -> str:
        """A tensor that lies in the data file (perhaps written for another graph)."""
        tensor = TensorProto(name=name, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(stored.dtype)
        tensor.dims.extend(stored.dims)
        for key, value in (("location", self.data.name), ("offset", stored.offset), ("length", stored.length)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        self.tensors.append(tensor)
        return name

    def add_input(self, name: str, kind: int, dims: Sequence[int | str]) -> None:
        self.inputs.append(helper.make_tensor_value_info(name, kind, dims))

    def add_output(self, name: str, kind: int, dims: Sequence[int | str]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, dims))

    def serialise(self, name: str) -> bytes:
        """The ``.onnx`` file's bytes."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.tensors)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(MICROSOFT, _MICROSOFT_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="splitglm")
        return bytes(model.SerializeToString(deterministic=True))
