"""Block quantisation: what the integers mean, and that ONNX Runtime reads the same layout."""

from __future__ import annotations

import io

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from splitglm_core.errors import InternalError
from splitglm_glm.compress.quantise import BlockFormat, choose_block, dequantise_rows, quantise_rows, row_chunks
from splitglm_glm.export.graph import DataFile

FORMATS = [BlockFormat(bits=b, block=k, symmetric=s) for b in (4, 8) for k in (16, 32, 128) for s in (True, False)]


def relative_rms(error: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt((error**2).mean() / (reference**2).mean()))


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_every_value_is_within_one_step_of_the_original(form: BlockFormat) -> None:
    weights = np.random.default_rng(1).standard_normal((5, 300)).astype(np.float32)
    quantised = quantise_rows(weights, form)
    step = np.repeat(np.abs(quantised.scales), form.block, axis=1)[:, :300]
    error = np.abs(dequantise_rows(quantised, form, 300) - weights)
    # The error search may clip a block's extremes by a step or more, but only where that lowers the block's total.
    assert (error <= step * 0.501).mean() > 0.97
    assert error.max() <= 5 * step.max()


@pytest.mark.parametrize(("bits", "most"), [(8, 0.008), (4, 0.11)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gaussian_weights_keep_the_stated_relative_error(bits: int, most: float, symmetric: bool) -> None:
    weights = np.random.default_rng(2).standard_normal((64, 1024)).astype(np.float32)
    form = BlockFormat(bits=bits, block=128, symmetric=symmetric)
    assert relative_rms(dequantise_rows(quantise_rows(weights, form), form, 1024) - weights, weights) < most


def test_the_scale_search_beats_plain_absmax_rounding() -> None:
    weights = np.random.default_rng(3).standard_normal((32, 512)).astype(np.float32)
    blocks = weights.reshape(32, -1, 128)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    plain = np.clip(np.rint(blocks / (extreme / -8)), -8, 7) * (extreme / -8)
    form = BlockFormat(bits=4, block=128, symmetric=True)
    searched = dequantise_rows(quantise_rows(weights, form), form, 512)
    assert relative_rms(searched - weights, weights) < 0.96 * relative_rms(plain.reshape(32, 512) - weights, weights)


@given(seed=st.integers(0, 2**32 - 1), bits=st.sampled_from([4, 8]), symmetric=st.booleans(), k=st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_values_on_the_grid_survive_exactly(seed: int, bits: int, symmetric: bool, k: int) -> None:
    rng = np.random.default_rng(seed)
    form = BlockFormat(bits=bits, block=32, symmetric=symmetric)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    levels = rng.integers(low, high + 1, (3, k))
    levels[:, ::32] = low  # both ends of the range occur in every block, so the grid is determined
    levels[:, 1::32] = high
    weights = (levels * np.float32(0.25)).astype(np.float32)
    if k % 32 == 1:
        weights[:, -1] = weights[:, -1] if symmetric else 0
    restored = dequantise_rows(quantise_rows(weights, form), form, k)
    np.testing.assert_allclose(restored, weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_zeros_and_denormals_become_exact_zeros(form: BlockFormat) -> None:
    weights = np.zeros((2, form.block * 2), np.float32)
    weights[1] = 1e-40
    quantised = quantise_rows(weights, form)
    assert np.isfinite(quantised.scales).all()
    assert not dequantise_rows(quantised, form, form.block * 2).any()


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("k", [256, 200])
def test_onnx_runtime_multiplies_by_the_dequantised_matrix(form: BlockFormat, k: int) -> None:
    rng = np.random.default_rng(4)
    weights, x = (rng.standard_normal(s).astype(np.float32) for s in ((48, k), (3, k)))
    quantised = quantise_rows(weights, form)
    tensors = {"packed": quantised.packed, "scales": quantised.scales}
    if quantised.zero_points is not None:
        tensors["zeros"] = quantised.zero_points
    node = helper.make_node(
        "MatMulNBits", ["x", *tensors], ["y"], domain="com.microsoft", K=k, N=48, bits=form.bits, block_size=form.block
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, k))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (3, 48))],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = x @ dequantise_rows(quantised, form, k).T
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=2e-4)


@pytest.mark.parametrize(("k", "preferred", "block"), [(2048, 128, 128), (576, 128, 64), (96, 128, 32), (100, 128, 32)])
def test_block_is_the_largest_that_divides_the_row(k: int, preferred: int, block: int) -> None:
    assert choose_block(k, preferred) == block


def test_row_chunks_cover_a_matrix_once_and_stay_small() -> None:
    chunks = list(row_chunks(10_000, 4096))
    assert [c.start for c in chunks] == [0, *(c.stop for c in chunks[:-1])]
    assert chunks[-1].stop == 10_000
    assert max(c.stop - c.start for c in chunks) * 4096 <= 1 << 21
    assert [len(range(*c.indices(3))) for c in row_chunks(3, 1 << 23)] == [1, 1, 1]


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_stored_bytes_are_what_the_format_says(form: BlockFormat) -> None:
    data = DataFile("part.bin", io.BytesIO())
    stored = data.append_quantised(lambda start, stop: np.ones((stop - start, 200), np.float32), 7, 200, form)
    assert sum(tensor.length for tensor in stored) == form.bytes_of(7, 200)
    assert all(tensor.offset % 4096 == 0 for tensor in stored)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b.bin", "../x.bin", "c\\d.bin"])
def test_external_data_cannot_leave_its_directory(name: str) -> None:
    with pytest.raises(InternalError):
        DataFile(name, io.BytesIO())


@pytest.mark.parametrize(("bits", "block"), [(3, 32), (4, 8), (4, 48)])
def test_unsupported_formats_are_refused(bits: int, block: int) -> None:
    with pytest.raises(InternalError):
        BlockFormat(bits=bits, block=block, symmetric=True)
