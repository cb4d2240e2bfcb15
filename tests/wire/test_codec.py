"""Codecs of hidden states: how much they lose, what their size depends on, and what they refuse."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from splitglm_core.errors import BadTensor
from splitglm_core.plan import Codec
from splitglm_wire.codec import OUTLIERS, decode, encode, max_rows, payload_bytes, row_bytes
from splitglm_wire.frames import Reply, Result, Rows, Step
from splitglm_wire.framing import encode as encode_frame
from splitglm_wire.limits import MAX_ABS_VALUE, MAX_CONTEXT, MAX_HIDDEN, MAX_RECORD_BYTES, MAX_REPLY_BYTES, MAX_ROWS

Hidden = NDArray[np.float32]
SHAPES = [(1, 1), (1, 3), (2, 4), (3, 5), (1, 576), (7, 64), (128, 576), (2, 4096)]
BAD_VALUES = [np.nan, np.inf, -np.inf, 1.01 * MAX_ABS_VALUE, -1.01 * MAX_ABS_VALUE, 3.4e38]
ROW_EXTRA = 4 + 6 * OUTLIERS
LARGEST = MAX_ABS_VALUE * (1 + 1e-6)  # a code times a scale is rounded


def states(rows: int, hidden: int, seed: int = 0) -> Hidden:
    """Like a language model's: some channels far larger than the rest, position 0 with one huge one."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (rows, hidden)).astype(np.float32)
    x[:, :: max(1, hidden // 3)] *= 40
    x[0, hidden // 2] = 2.4e4
    return x


def there_and_back(x: Hidden, codec: Codec, base: int) -> Hidden:
    payload = encode(x, codec, base=base)
    assert len(payload) == payload_bytes(codec, len(x), x.shape[1], base)
    y = decode(payload, codec, rows=len(x), hidden=x.shape[1], base=base)
    assert y.shape == x.shape
    assert y.dtype == np.float32
    return y


ANY_STATES = st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=40).flatmap(
    lambda shape: st_numpy.arrays(
        np.float32, shape, elements=st.floats(-MAX_ABS_VALUE, MAX_ABS_VALUE, width=32, allow_subnormal=True)
    )
)


def int8_bounds(x: Hidden) -> NDArray[np.float64]:
    """Largest error of each value: half a step of the row's scale, nothing where the value is sent exactly."""
    magnitude = np.sort(np.abs(x.astype(np.float64)), axis=1)
    rest = magnitude[:, : -min(OUTLIERS, x.shape[1])]
    scale = (rest.max(axis=1) if rest.shape[1] else np.zeros(len(x))) / 127
    # A row whose scale is below 1e-30 is sent as zeros.
    bound = np.where(scale > 1e-30, scale * (0.5 + 1e-4), 1.3e-28)[:, None]
    exact = np.abs(x) > (rest.max(axis=1, keepdims=True) if rest.shape[1] else -1.0)
    return np.where(exact, 0.0, bound)


@given(x=ANY_STATES, base=st.sampled_from([0, 1, 500]))
@settings(max_examples=200, deadline=None)
def test_fp32_is_exact(x: Hidden, base: int) -> None:
    assert np.array_equal(there_and_back(x, Codec.FP32, base).view(np.uint32), x.view(np.uint32))


@given(x=ANY_STATES, base=st.sampled_from([0, 1, 500]))
@settings(max_examples=300, deadline=None)
def test_bf16_is_within_two_to_the_minus_eight(x: Hidden, base: int) -> None:
    y = there_and_back(x, Codec.BF16, base)
    normal = np.abs(x) >= np.finfo(np.float32).tiny
    assert np.all(np.abs(y - x)[normal] <= np.abs(x)[normal] * 2.0**-8)
    assert np.all(np.abs(y - x)[~normal] <= 2.0**-134)


@given(x=ANY_STATES, base=st.sampled_from([0, 1, 500]))
@settings(max_examples=400, deadline=None)
def test_int8_is_within_half_a_step_and_exact_where_it_says_so(x: Hidden, base: int) -> None:
    y = there_and_back(x, Codec.INT8, base)
    error = np.abs(y.astype(np.float64) - x.astype(np.float64))
    if base == 0:
        assert np.array_equal(y[0], x[0])
        error, x = error[1:], x[1:]
    if len(x):
        assert np.all(error <= int8_bounds(x))


@pytest.mark.parametrize(("rows", "hidden"), SHAPES)
def test_int8_keeps_position_0_and_the_four_largest_channels_of_every_row(rows: int, hidden: int) -> None:
    x = states(rows, hidden)
    for base in (0, 17):
        y = there_and_back(x, Codec.INT8, base)
        largest = np.argsort(-np.abs(x), axis=1)[:, :OUTLIERS]
        assert np.array_equal(np.take_along_axis(y, largest, 1), np.take_along_axis(x, largest, 1))
        if base == 0:
            assert np.array_equal(y[0], x[0])


def test_bf16_rounds_as_ml_dtypes_does() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(0, 10.0**e, 4000) for e in range(-30, 6)]).astype(np.float32)
    ties = (np.arange(1, 3000, dtype=np.uint32) << 16 | 0x8000).view(np.float32)  # half way between two bf16
    x = np.clip(np.concatenate([x, ties, -ties, [0.0, -0.0]]), -MAX_ABS_VALUE, MAX_ABS_VALUE).astype(np.float32)
    ours = np.frombuffer(encode(x[None], Codec.BF16, base=1), "<u2")
    theirs = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(ours, theirs)


@given(x=ANY_STATES, codec=st.sampled_from(Codec), base=st.sampled_from([0, 1, 500]), data=st.data())
@settings(max_examples=200, deadline=None)
def test_payloads_of_adjacent_positions_are_joined_and_cut_as_bytes(
    x: Hidden, codec: Codec, base: int, data: st.DataObject
) -> None:
    rows, hidden = x.shape
    cut = data.draw(st.integers(0, rows))
    parts = [(x[:cut], base), (x[cut:], base + cut)]
    first, second = (encode(part, codec, base=at) if len(part) else b"" for part, at in parts)
    whole = decode(first + second, codec, rows=rows, hidden=hidden, base=base)
    pieces = [there_and_back(part, codec, at) for part, at in parts if len(part)]
    assert np.array_equal(whole, np.concatenate(pieces))
    assert (first + second)[: payload_bytes(codec, cut, hidden, base)] == first


@pytest.mark.parametrize("codec", Codec)
def test_size_depends_on_the_shape_only(codec: Codec) -> None:
    for (rows, hidden), base in itertools.product(SHAPES, (0, 1, 77)):
        contents = [states(rows, hidden, seed) for seed in range(3)]
        contents += [np.zeros((rows, hidden), np.float32), np.full((rows, hidden), 1e6, np.float32)]
        sizes = {len(encode(x, codec, base=base)) for x in contents}
        assert sizes == {payload_bytes(codec, rows, hidden, base)}


@pytest.mark.parametrize("codec", Codec)
def test_a_row_is_the_same_bytes_whatever_rows_it_travels_with(codec: Codec) -> None:
    x = states(6, 64)
    whole = encode(x, codec, base=3)
    assert whole == b"".join(encode(x[i : i + 1], codec, base=3 + i) for i in range(6))


def test_the_formats_bytes_are_fixed() -> None:
    """A peer of another release reads these bytes: changing them is another protocol version."""
    x = np.array([[1.0, -2.0, 3.0, 0.5, 100.0, -0.25]], np.float32)
    assert encode(x, Codec.FP32, base=1).hex() == "0000803f000000c0000040400000003f0000c842000080be"
    assert encode(x, Codec.BF16, base=1).hex() == "803f00c04040003fc84280be"
    payload = encode(x, Codec.INT8, base=1)
    assert np.frombuffer(payload, "<f4", 1)[0] == np.float32(0.5) / np.float32(127)
    channels = np.frombuffer(payload, "<u2", 4, 4)
    values = np.frombuffer(payload, "<f4", 4, 12)
    assert dict(zip(channels.tolist(), values.tolist(), strict=True)) == {0: 1.0, 1: -2.0, 2: 3.0, 4: 100.0}
    codes = np.frombuffer(payload, np.int8, 6, 28)
    assert (codes[3], codes[5]) == (127, -64)
    assert len(payload) == row_bytes(Codec.INT8, 6)
    assert encode(x, Codec.INT8, base=0) == encode(x, Codec.FP32, base=0)


@pytest.mark.parametrize("bad", BAD_VALUES)
@pytest.mark.parametrize("codec", Codec)
def test_values_that_are_not_finite_or_absurd_are_refused_both_ways(codec: Codec, bad: float) -> None:
    for (rows, hidden), base in itertools.product([(1, 8), (3, 64)], (0, 9)):
        for row, channel in ((0, 0), (rows - 1, hidden - 1)):
            x = states(rows, hidden)
            x[row, channel] = bad
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(BadTensor):
                    encode(x, codec, base=base)
                with pytest.raises(BadTensor):
                    decode(hostile(x, codec, base), codec, rows=rows, hidden=hidden, base=base)


def hostile(x: Hidden, codec: Codec, base: int) -> bytes:
    """The payload that a peer without our checks would send for ``x``."""
    if codec is Codec.FP32:
        return x.astype("<f4").tobytes()
    if codec is Codec.BF16:
        return (x.view(np.uint32) >> 16).astype("<u2").tobytes()
    out = [x[:1].tobytes()] if base == 0 else []
    for row in x[1:] if base == 0 else x:
        worst = int(np.argmax(~(np.abs(row) <= MAX_ABS_VALUE)))
        channels = np.array([worst, *(c for c in range(5) if c != worst)][:OUTLIERS], "<u2")
        out.append(np.float32(0.1).tobytes() + channels.tobytes() + row[channels].astype("<f4").tobytes())
        out.append(bytes(len(row)))
    return b"".join(out)


def int8_row(scale: float = 0.5, channels: tuple[int, ...] = (0, 1, 2, 3), hidden: int = 8, code: int = 1) -> bytes:
    values = np.zeros(OUTLIERS, "<f4").tobytes()
    return np.float32(scale).tobytes() + np.array(channels, "<u2").tobytes() + values + bytes([code % 256]) * hidden


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, -1e-30, 2 * MAX_ABS_VALUE, MAX_ABS_VALUE])
def test_a_malformed_scale_is_refused(scale: float) -> None:
    rows = int8_row() + int8_row(scale, code=127)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadTensor):
            decode(rows, Codec.INT8, rows=2, hidden=8, base=1)


@pytest.mark.parametrize("channel", [8, 9, 255, 256, 65535])
@pytest.mark.parametrize("slot", range(OUTLIERS))
def test_an_outlier_channel_outside_the_width_is_refused(channel: int, slot: int) -> None:
    channels = [0, 1, 2, 3]
    channels[slot] = channel
    with pytest.raises(BadTensor):
        decode(int8_row() + int8_row(channels=tuple(channels)), Codec.INT8, rows=2, hidden=8, base=1)


def test_a_code_that_no_encoder_makes_is_refused() -> None:
    assert decode(int8_row(code=-127), Codec.INT8, rows=1, hidden=8, base=1)[0, 7] == -63.5
    with pytest.raises(BadTensor):
        decode(int8_row(code=-128), Codec.INT8, rows=1, hidden=8, base=1)


def test_the_largest_values_are_let_through_by_every_codec() -> None:
    for codec, value in itertools.product(Codec, (MAX_ABS_VALUE, -MAX_ABS_VALUE)):
        x = np.full((2, 12), 0.99 * value if codec is Codec.BF16 else value, np.float32)
        assert np.allclose(there_and_back(x, codec, 1), x, rtol=2.0**-8)


@pytest.mark.parametrize("codec", Codec)
def test_every_other_size_is_refused(codec: Codec) -> None:
    for base in (0, 5):
        payload = encode(states(3, 16), codec, base=base)
        for size in range(len(payload) + 40):
            if size == len(payload):
                continue
            with pytest.raises(BadTensor):
                decode((payload + bytes(40))[:size], codec, rows=3, hidden=16, base=base)


@pytest.mark.parametrize(
    ("rows", "hidden"),
    [(0, 8), (-1, 8), (MAX_ROWS + 1, 8), (1, 0), (1, -8), (1, MAX_HIDDEN + 1), (2**31, 2**31), (2**63, 1)],
)
@pytest.mark.parametrize("codec", Codec)
def test_shapes_out_of_bounds_are_refused_before_anything_is_allocated(codec: Codec, rows: int, hidden: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadTensor):
            decode(bytes(64), codec, rows=rows, hidden=hidden, base=1)
        with pytest.raises(BadTensor):
            decode(bytes(64), codec, rows=MAX_ROWS, hidden=MAX_HIDDEN, base=0)
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", Codec)
def test_bytes_of_a_pickle_are_only_numbers_or_refused(codec: Codec) -> None:
    """Nothing on the wire is ever unpickled: such bytes are a wrong size, or at most odd numbers."""
    data = b"\x80\x04cos\nsystem\n\x8c\x04true\x85R."  # protocol 4: calls os.system("true") when loaded
    with pytest.raises(BadTensor):
        decode(data, codec, rows=2, hidden=16, base=1)
    size = payload_bytes(codec, 1, 16, 1)
    try:
        x = decode((data * size)[:size], codec, rows=1, hidden=16, base=1)
    except BadTensor:
        return
    assert np.all(np.abs(x) <= LARGEST)


@given(data=st.binary(min_size=0, max_size=200), rows=st.integers(1, 4), hidden=st.integers(1, 12), first=st.booleans())
@settings(max_examples=500, deadline=None)
@pytest.mark.parametrize("codec", Codec)
def test_random_payloads_decode_to_bounded_numbers_or_are_refused(
    codec: Codec, data: bytes, rows: int, hidden: int, first: bool
) -> None:
    base = 0 if first else 3
    size = payload_bytes(codec, rows, hidden, base)
    payload = (data * (size // max(1, len(data)) + 1))[:size] if data else bytes(size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            x = decode(payload, codec, rows=rows, hidden=hidden, base=base)
        except BadTensor:
            return
    assert x.shape == (rows, hidden)
    assert np.all(np.abs(x) <= LARGEST)


@pytest.mark.parametrize("hidden", [1, 576, 2048, 4096, 8192, MAX_HIDDEN])
@pytest.mark.parametrize("codec", Codec)
def test_the_largest_chunk_fits_a_record_up_and_down(codec: Codec, hidden: int) -> None:
    rows = max_rows(codec, hidden)
    assert 1 <= rows <= MAX_ROWS
    for base in (0, MAX_CONTEXT - rows):
        payload = bytes(payload_bytes(codec, rows, hidden, base))
        assert len(payload) <= MAX_REPLY_BYTES
        up = Step(
            handle=1,
            fence=1,
            seq=1,
            base=base,
            rows_kind=Rows.HIDDEN,
            rows=rows,
            reply=Reply.ALL_HIDDEN,
            generate=0,
            payload=payload,
        )
        down = Result(
            handle=1,
            fence=1,
            seq=1,
            index=0,
            last=True,
            reply=Reply.ALL_HIDDEN,
            kv_length=base + rows,
            rows=rows,
            queue_us=0,
            compute_us=0,
            payload=payload,
        )
        assert max(len(encode_frame(up)), len(encode_frame(down))) <= MAX_RECORD_BYTES


def test_a_payload_may_be_a_view_at_any_offset() -> None:
    x = states(3, 20)
    for codec, offset in itertools.product(Codec, range(4)):
        payload = encode(x, codec, base=0)
        view = memoryview(bytes(offset) + payload + b"rest")[offset : offset + len(payload)]
        expected = decode(payload, codec, rows=3, hidden=20, base=0)
        assert np.array_equal(decode(view, codec, rows=3, hidden=20, base=0), expected)


def test_an_encoded_array_keeps_no_hold_of_its_source() -> None:
    x = states(2, 8)
    for codec in Codec:
        payload = encode(x, codec, base=1)
        y = decode(payload, codec, rows=2, hidden=8, base=1)
        y[:] = 0
        assert encode(x, codec, base=1) == payload
    strided = np.asfortranarray(states(4, 8))[::2]
    assert encode(strided, Codec.FP32, base=1) == encode(strided.copy(), Codec.FP32, base=1)


def test_a_row_of_zeros_stays_zero() -> None:
    for codec in Codec:
        assert not np.any(there_and_back(np.zeros((3, 16), np.float32), codec, 1))


def test_the_rows_overhead_is_what_the_format_says() -> None:
    assert row_bytes(Codec.INT8, 576) == 576 + ROW_EXTRA
    assert payload_bytes(Codec.INT8, 3, 576, 0) == 4 * 576 + 2 * (576 + ROW_EXTRA)
    assert payload_bytes(Codec.INT8, 0, 576, 0) == 0
