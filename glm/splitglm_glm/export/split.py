"""A decoder layer's graph in the three pieces that a batch of several sessions needs.

Everything before and after attention treats each row alone, so the rows of all sessions pass through it together, over
one copy of the weights; attention needs each session's own keys and values. The pieces are cut from the layer's graph
file, which names its weights by file, offset and length: nothing is written, read or stored a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from splitglm_core.errors import ModelInvalid
from splitglm_core.shapes import ModelShape

_ATTENTION = "GroupQueryAttention"
HIDDEN_IN, HIDDEN_OUT, QKV, CONTEXT = "hidden_in", "hidden_out", "qkv", "context"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLayer:
    """Serialised graphs; ``n`` rows, ``q = heads * head_dim``, ``kv = kv_heads * head_dim``.

    Attributes:
        before: ``hidden_in [1, n, hidden]`` -> ``qkv [1, n, q + 2 kv]``.
        attention: ``qkv`` and the inputs of the layer's graph but ``hidden_in`` -> ``context [1, n, q]`` and the
            present keys and values. It holds no weights and is the same for every layer of a model.
        after: ``hidden_in``, ``context`` -> ``hidden_out [1, n, hidden]``.
    """

    before: bytes
    attention: bytes
    after: bytes


def split_layer(path: Path, shape: ModelShape) -> SplitLayer:
    """The pieces of the layer graph at ``path``; external data stays a plain file name beside it.

    Raises:
        ModelInvalid: the file is not a layer graph of this shape.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's exceptions share no base class with onnx's
        raise ModelInvalid(f"{path.name} is not an ONNX graph", "run `splitglm pull` for this model again") from error
    graph = model.graph
    places = [index for index, node in enumerate(graph.node) if node.op_type == _ATTENTION]
    if len(places) != 1:
        raise ModelInvalid(f"{path.name} is not the graph of a decoder layer", "pull this model again")
    at = places[0]
    attention = graph.node[at]
    q = shape.heads * shape.head_dim
    hidden_in = helper.make_tensor_value_info(HIDDEN_IN, TensorProto.FLOAT, (1, "n", shape.hidden))
    hidden_out = helper.make_tensor_value_info(HIDDEN_OUT, TensorProto.FLOAT, (1, "n", shape.hidden))
    qkv = helper.make_tensor_value_info(QKV, TensorProto.FLOAT, (1, "n", q + 2 * shape.kv_heads * shape.head_dim))
    context = helper.make_tensor_value_info(CONTEXT, TensorProto.FLOAT, (1, "n", q))
    if attention.input[0] != QKV or attention.output[0] != CONTEXT:
        raise ModelInvalid(f"{path.name} names its attention differently", "pull this model again")
    kept = [value for value in graph.input if value.name != HIDDEN_IN]
    present = [value for value in graph.output if value.name != HIDDEN_OUT]

    def piece(
        nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> bytes:
        used = {name for node in nodes for name in node.input}
        tensors = [tensor for tensor in graph.initializer if tensor.name in used]
        made = helper.make_graph(nodes, path.stem, inputs, outputs, tensors)
        whole = helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)
        return bytes(whole.SerializeToString(deterministic=True))

    return SplitLayer(
        before=piece(graph.node[:at], [hidden_in], [qkv]),
        attention=piece([attention], [qkv, *kept], [context, *present]),
        after=piece(graph.node[at + 1 :], [hidden_in, context], [hidden_out]),
    )
