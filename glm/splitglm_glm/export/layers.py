"""The three kinds of graph: embedding, decoder layer, final norm with LM head.

Names of graph inputs and outputs (``n`` positions, batch always 1):

* embedding: ``ids [1, n] int64`` -> ``hidden_out [1, n, hidden]``
* layer: ``hidden_in [1, n, hidden]``, ``past_key``/``past_value [1, kv_heads, capacity, head_dim]``,
  ``last_position [1] int32`` (position of the newest token), ``total_length [] int32``, ``cos``/``sin
  [positions, pairs]`` -> ``hidden_out``, ``present_key``/``present_value`` (bound to the past buffers)
* head: ``hidden_in`` -> ``logits [1, n, vocab]``

The rotary tables are inputs, not constants: one pair serves every layer and may grow with the longest cache. Inside a
layer, attention reads ``qkv`` and writes ``context``; :mod:`~splitglm_glm.export.split` cuts the graph there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from splitglm_core.plan import Precision
from splitglm_core.shapes import ModelShape
from splitglm_glm.checkpoint import LayerWeights
from splitglm_glm.compress.quantise import BlockFormat, Float32, choose_block
from splitglm_glm.config import GlmConfig
from splitglm_glm.export.graph import MICROSOFT, Graph, StoredTensor
from splitglm_glm.rotary import rotary_pairs

# MatMulNBits quantises the activations of each block to int8 and multiplies integers. Level 0 (float32 arithmetic)
# is 3 times slower at 4 bits and 60 times at 8 bits on AVX512-VNNI.
_ACCURACY_INT8 = 4
_FLOAT, _INT32, _INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRecipe:
    """Bits, largest block and symmetry of one kind of matrix."""

    bits: int
    block: int
    symmetric: bool

    def form(self, k: int) -> BlockFormat:
        """The format of a matrix with ``k`` columns."""
        return BlockFormat(bits=self.bits, block=choose_block(k, self.block), symmetric=self.symmetric)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRecipe:
    """How one precision stores the decoder layers and the vocabulary matrices; None is float32."""

    layer: WeightRecipe | None
    vocabulary: WeightRecipe | None


_SMALL_HIDDEN = 1024  # narrower models have little redundancy: 4 bits then need small blocks


def recipe_for(precision: Precision, shape: ModelShape) -> PrecisionRecipe:
    """How a model of this shape is stored at ``precision``.

    Measured with benchmarks/quality.py and benchmarks/front.py: at 4 bits an asymmetric block costs no time and
    halves the divergence of a symmetric one; blocks of 32 are 1.3 times slower than blocks of 128 but halve it again.
    The vocabulary stays at 8 bits in small blocks: the head decides every token, and its input has outliers.
    """
    vocabulary = WeightRecipe(bits=8, block=32, symmetric=True)
    if precision is Precision.FP32:
        return PrecisionRecipe(layer=None, vocabulary=None)
    if precision is Precision.INT8:
        return PrecisionRecipe(layer=WeightRecipe(bits=8, block=128, symmetric=True), vocabulary=vocabulary)
    block = 32 if shape.hidden < _SMALL_HIDDEN else 128
    return PrecisionRecipe(layer=WeightRecipe(bits=4, block=block, symmetric=False), vocabulary=vocabulary)


def add_decoder_layer(graph: Graph, config: GlmConfig, weights: LayerWeights, recipe: WeightRecipe | None) -> None:
    """One decoder layer with its KV cache bound in place.

    Args:
        graph: an empty graph.
        config: ``sandwich_norms`` (GLM-4-0414) adds a norm on each branch before its residual addition.
        weights: float32 matrices of the layer.
        recipe: storage of the matrices; None keeps float32.
    """
    shape = config.shape
    kv_dims = (1, shape.kv_heads, "capacity", shape.head_dim)
    pairs = rotary_pairs(config)
    graph.add_input("hidden_in", _FLOAT, (1, "n", shape.hidden))
    graph.add_input("past_key", _FLOAT, kv_dims)
    graph.add_input("past_value", _FLOAT, kv_dims)
    graph.add_input("last_position", _INT32, (1,))
    graph.add_input("total_length", _INT32, ())
    graph.add_input("cos", _FLOAT, ("table", pairs))
    graph.add_input("sin", _FLOAT, ("table", pairs))
    graph.add_output("hidden_out", _FLOAT, (1, "n", shape.hidden))
    graph.add_output("present_key", _FLOAT, kv_dims)
    graph.add_output("present_value", _FLOAT, kv_dims)

    normed = _rms_norm(graph, "input_norm", "hidden_in", weights.input_norm, config.rms_eps)
    qkv = _linear(graph, "qkv", normed, weights.qkv, recipe, weights.qkv_bias)
    graph.node(
        "GroupQueryAttention",
        [qkv, "", "", "past_key", "past_value", "last_position", "total_length", "cos", "sin"],
        ["context", "present_key", "present_value"],
        MICROSOFT,
        num_heads=shape.heads,
        kv_num_heads=shape.kv_heads,
        do_rotary=1,
        rotary_interleaved=1,
        scale=float(shape.head_dim**-0.5),
    )
    attended = _linear(graph, "attended", "context", weights.o, recipe)
    if weights.post_self_attn_norm is not None:
        attended = _rms_norm(graph, "post_self_attn_norm", attended, weights.post_self_attn_norm, config.rms_eps)
    norm = graph.constant("post_attention_norm.weight", weights.post_attention_norm)
    graph.node(
        "SkipSimplifiedLayerNormalization",
        ["hidden_in", attended, norm],
        ["mlp_in", "", "", "residual"],
        MICROSOFT,
        epsilon=config.rms_eps,
    )
    gate_up = _linear(graph, "gate_up", "mlp_in", weights.gate_up, recipe)
    graph.node("Split", [gate_up], ["gate", "up"], axis=-1, num_outputs=2)
    graph.node("Sigmoid", ["gate"], ["gate_sigmoid"])
    graph.node("Mul", ["gate", "gate_sigmoid"], ["gate_silu"])
    graph.node("Mul", ["gate_silu", "up"], ["activated"])
    down = _linear(graph, "down", "activated", weights.down, recipe)
    if weights.post_mlp_norm is not None:
        down = _rms_norm(graph, "post_mlp_norm", down, weights.post_mlp_norm, config.rms_eps)
    graph.node("Add", ["residual", down], ["hidden_out"])


def add_embedding(
    graph: Graph,
    stored: tuple[StoredTensor, ...],
    form: BlockFormat | None,
    hidden: int,
    factors: Float32 | None = None,
) -> None:
    """Row look-up. The table is only mapped, so memory holds the pages of rows that were used.

    Args:
        graph: an empty graph.
        stored: the table ``[vocab, hidden]`` as written by the head (tied) or for this graph.
        form: how the table is quantised (8 bits, symmetric); None is float32.
        hidden: width of a row.
        factors: by which the table's columns were multiplied when they were equalised for the head, or None.
    """
    graph.add_input("ids", _INT64, (1, "n"))
    graph.add_output("hidden_out", _FLOAT, (1, "n", hidden))
    rows = "hidden_out" if factors is None else "scaled_rows"
    if form is None:
        graph.node("Gather", [graph.external("table", stored[0]), "ids"], [rows], axis=0)
    else:
        _gather_quantised(graph, stored, form, hidden, rows)
    if factors is not None:
        inverse = graph.constant("inverse_factors", np.reciprocal(factors))
        graph.node("Mul", [rows, inverse], ["hidden_out"])


def _gather_quantised(graph: Graph, stored: tuple[StoredTensor, ...], form: BlockFormat, hidden: int, out: str) -> None:
    graph.node("Gather", [graph.external("table", stored[0]), "ids"], ["levels"], axis=0)
    graph.node("Cast", ["levels"], ["levels_float"], to=_FLOAT)
    middle = graph.constant("middle", np.array(1 << (form.bits - 1), np.float32))
    graph.node("Sub", ["levels_float", middle], ["centred"])
    graph.node("Gather", [graph.external("scales", stored[1]), "ids"], ["row_scales"], axis=0)
    graph.node("Unsqueeze", ["row_scales", graph.constant("last_axis", np.array([-1], np.int64))], ["block_scales"])
    graph.node("Mul", ["centred", "block_scales"], ["blocks"])
    padded = form.blocks_of(hidden) * form.block
    dims = graph.constant("row_shape", np.array([1, -1, padded], np.int64))
    if padded == hidden:
        graph.node("Reshape", ["blocks", dims], [out])
        return
    graph.node("Reshape", ["blocks", dims], ["padded"])
    bounds = [
        graph.constant(name, np.array([value], np.int64))
        for name, value in (("start", 0), ("stop", hidden), ("axis", 2))
    ]
    graph.node("Slice", ["padded", *bounds], [out])


def add_head(
    graph: Graph, config: GlmConfig, final_norm: Float32, stored: tuple[StoredTensor, ...], form: BlockFormat | None
) -> None:
    """Final norm and LM head over a table ``[vocab, hidden]`` that already lies in the data file."""
    hidden, vocab = config.shape.hidden, config.shape.vocab
    graph.add_input("hidden_in", _FLOAT, (1, "n", hidden))
    graph.add_output("logits", _FLOAT, (1, "n", vocab))
    normed = _rms_norm(graph, "final_norm", "hidden_in", final_norm, config.rms_eps)
    if form is not None:
        _matmul_nbits(graph, normed, stored, form, "logits", vocab, hidden)
        return
    # Gemm reads the table as stored, so a tied embedding can share it; MatMul would need a transposed copy.
    flat = graph.node("Reshape", [normed, graph.constant("flat", np.array([-1, hidden], np.int64))], ["rows"])
    graph.node("Gemm", [flat, graph.external("table", stored[0])], ["flat_logits"], transB=1)
    graph.node("Reshape", ["flat_logits", graph.constant("batched", np.array([1, -1, vocab], np.int64))], ["logits"])


def _rms_norm(graph: Graph, name: str, x: str, weight: Float32, eps: float) -> str:
    scale = graph.constant(f"{name}.weight", weight)
    return graph.node("SimplifiedLayerNormalization", [x, scale], [name], axis=-1, epsilon=eps, stash_type=1)


def _linear(
    graph: Graph, name: str, x: str, weight: Float32, recipe: WeightRecipe | None, bias: Float32 | None = None
) -> str:
    n, k = weight.shape
    product = name if bias is None else f"{name}.product"
    if recipe is None:
        transposed = graph.external(f"{name}.weight", graph.data.append(weight.dtype, (k, n), (weight.T,)))
        graph.node("MatMul", [x, transposed], [product])
    else:
        form = recipe.form(k)
        _matmul_nbits(
            graph,
            x,
            graph.data.append_quantised(lambda start, stop: weight[start:stop], n, k, form),
            form,
            product,
            n,
            k,
        )
    if bias is None:
        return product
    return graph.node("Add", [product, graph.constant(f"{name}.bias", bias)], [name])


def _matmul_nbits(
    graph: Graph, x: str, stored: tuple[StoredTensor, ...], form: BlockFormat, out: str, n: int, k: int
) -> None:
    tensors = [
        graph.external(f"{out}.{kind}", part) for kind, part in zip(("packed", "scales", "zeros"), stored, strict=False)
    ]
    graph.node(
        "MatMulNBits",
        [x, *tensors],
        [out],
        MICROSOFT,
        K=k,
        N=n,
        bits=form.bits,
        block_size=form.block,
        accuracy_level=_ACCURACY_INT8,
    )
