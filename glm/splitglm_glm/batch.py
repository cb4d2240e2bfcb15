"""Rows of many sessions through the same layers at once, each attending to its own keys and values.

Per layer: one pass over the weights before attention for all rows, attention session by session, one pass over the
weights after it. Reading the weights is what decoding costs, so ``n`` sessions cost little more than one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InternalError
from splitglm_core.ranges import LayerRange
from splitglm_glm.batch_buffers import RowBuffers, RowViews
from splitglm_glm.export.manifest import layer_part
from splitglm_glm.export.split import CONTEXT, HIDDEN_IN, HIDDEN_OUT, QKV, split_layer
from splitglm_glm.kv import BoundAttention, KvCache
from splitglm_glm.onnx_runtime import ort
from splitglm_glm.stack import LayerStack

Float32 = NDArray[np.float32]
# ONNX Runtime's quantised products take rows in pairs and an odd last row through another kernel, which rounds
# differently. With an even number of rows every row gets the same bits whatever else is in the batch.
_ROWS_TOGETHER = 2
_FEWEST_BUFFERED_ROWS = 32
# With fewer multiplications than these a second thread costs more than it brings (measured on 2 cores).
_WIDE_PRODUCTS = 8 << 20
_SHARED_PRODUCTS = 6 << 20


class Rider(Protocol):
    """``rows`` rows of a session whose cache holds ``base`` positions in the layers of the pass."""

    @property
    def cache(self) -> KvCache: ...

    @property
    def rows(self) -> int: ...

    @property
    def base(self) -> int: ...


@dataclass(slots=True)
class _Layer:
    """Both sessions over one layer's weights and their bindings, which point at the rows of ``bound``.

    ``attention`` (one thread) and ``wide_attention`` (all threads) hold no weights and are the same in every layer.
    """

    number: int
    before: ort.InferenceSession
    attention: ort.InferenceSession
    wide_attention: ort.InferenceSession
    after: ort.InferenceSession
    into_attention: ort.IOBinding
    out_of_attention: ort.IOBinding
    bound: RowViews | None = None


@dataclass(frozen=True, slots=True)
class _Turn:
    """One session's attention: its cache, its rows of ``qkv`` and of ``context``, and what it costs."""

    cache: KvCache
    rows: tuple[ort.OrtValue, ort.OrtValue]
    stop: int
    products: int
    wide: bool


class BatchStack:
    """The decoder layers of a :class:`LayerStack` for batches of several sessions.

    It opens sessions of its own over the layers' files: a process that uses it does not also call
    ``LayerStack.forward``, or each layer would be in memory twice. One thread at a time.

    Args:
        exact: a row's result is the same bits alone and in any batch, also for a batch of one row, which is then
            computed as two (1.01 to 1.11 times the time of one, benchmarks/batch_decode.py; nothing from two rows on).
            False computes a session that is alone in its batch as a device does, to the same bits, and leaves rounding
            in the last digit to its mates when it has some.
    """

    def __init__(self, stack: LayerStack, *, exact: bool) -> None:
        self._stack = stack
        self._exact = exact
        self._layers: dict[int, _Layer] = {}
        self._buffers = RowBuffers(_FEWEST_BUFFERED_ROWS, stack.config.shape)
        self._attention: tuple[ort.InferenceSession, ort.InferenceSession] | None = None
        self._load_lock = threading.Lock()
        self._threads = stack.options.thread_count
        self._pool: ThreadPoolExecutor | None = None

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers in use, of the layers and of the vocabulary."""
        used = {layer.before.get_providers()[0] for layer in self._layers.values()}
        return tuple(sorted(used.union(self._stack.providers if self._stack.loaded_parts() else ())))

    def loaded_parts(self) -> tuple[str, ...]:
        """Names of the loaded parts, layers and vocabulary, sorted."""
        return tuple(sorted({*map(layer_part, self._layers), *self._stack.loaded_parts()}))

    def preload(self, layers: LayerRange) -> None:
        """Load these layers now instead of at the first batch.

        Raises:
            ModelInvalid: a part is missing, truncated or changed; the hint says how to rebuild it.
        """
        for layer in layers:
            self._layer(layer)

    def forward(self, rows: Float32, riders: Sequence[Rider], layers: LayerRange) -> Float32:
        """Run ``rows [n, hidden]`` of all riders, one after the other, through ``layers``; returns a new array.

        Each rider's rows are appended to its cache. When this raises, no cache has changed its length.

        Raises:
            PromptTooLong: a rider's cache is too short.
        """
        stack, n = self._stack, rows.shape[0]
        if rows.shape != (sum(rider.rows for rider in riders), stack.config.shape.hidden):
            raise InternalError(f"rows of shape {rows.shape} are not those of their riders")
        if len({id(rider.cache) for rider in riders}) != len(riders):
            raise InternalError("a cache rides twice in one batch")
        if n == 0 or len(layers) == 0:
            return rows.copy()
        together = self._together(n, len(riders))
        if together > self._buffers.capacity:
            self._buffers = RowBuffers(1 << (together - 1).bit_length(), stack.config.shape)
        buffers = self._buffers
        views, turns = buffers.views(together), self._turns(riders, layers)
        hidden = buffers.hidden
        hidden[layers.start % 2][:n] = rows
        hidden[layers.start % 2][n:together] = 0.0
        buffers.context[n:together] = 0.0
        for number in layers:
            layer = self._layer(number)
            if layer.bound is not views:
                self._bind(layer, views)
            layer.before.run_with_iobinding(layer.into_attention)
            self._attend(layer, turns)
            layer.after.run_with_iobinding(layer.out_of_attention)
        for turn in turns:
            turn.cache.finish(layers, turn.stop)
        return hidden[layers.stop % 2][:n].copy()

    def logits(self, rows: Float32) -> Float32:
        """Final norm and LM head of several riders' rows at once: ``[n, hidden]`` to ``[n, vocab]``."""
        n = rows.shape[0]
        together = self._together(n, n)
        if together != n:
            padded = np.zeros((together, *rows.shape[1:]), np.float32)
            padded[:n] = rows
            rows = padded
        return self._stack.logits(rows)[:n]

    def _together(self, n: int, riders: int) -> int:
        """Rows that are computed for ``n`` rows; of one rider alone as a device computes them, unless exact."""
        if riders == 1 and not self._exact:
            return n
        return -(-n // _ROWS_TOGETHER) * _ROWS_TOGETHER

    def _turns(self, riders: Sequence[Rider], layers: LayerRange) -> list[_Turn]:
        shape, turns, start = self._stack.config.shape, [], 0
        for rider in riders:
            held = rider.cache.length_of(layers)
            if held != rider.base:
                raise InternalError(f"a cache holds {held} positions of layers {layers}, not {rider.base}")
            if rider.rows:
                stop = rider.cache.begin(layers, rider.rows)
                products = 2 * rider.rows * stop * shape.heads * shape.head_dim
                wide = self._threads > 1 and rider.rows > 1 and products >= _WIDE_PRODUCTS
                rows = self._buffers.slices(start, rider.rows)
                turns.append(_Turn(rider.cache, rows, stop, products, wide))
            start += rider.rows
        return turns

    def _attend(self, layer: _Layer, turns: Sequence[_Turn]) -> None:
        """Attention of every session: long chunks by all threads together, the others side by side if that pays."""
        narrow = [turn for turn in turns if not turn.wide]
        for turn in turns:
            if turn.wide:
                self._attend_wide(layer, turn)
        parts = [narrow]
        if self._threads > 1 and len(narrow) > 1 and sum(turn.products for turn in narrow) >= _SHARED_PRODUCTS:
            parts = _shares(narrow, min(self._threads, len(narrow)))
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads - 1, thread_name_prefix="splitglm-attention")
        others = [self._pool.submit(self._attend_narrow, layer, part) for part in parts[1:]] if self._pool else []
        try:
            self._attend_narrow(layer, parts[0])
        finally:
            for other in others:  # also after an error: nobody may still be writing when the caller goes on
                other.exception()
        for other in others:
            other.result()

    @staticmethod
    def _attend_narrow(layer: _Layer, turns: Sequence[_Turn]) -> None:
        for turn in turns:
            bound = turn.cache.attention.get(layer.number)
            if bound is None:
                bound = BoundAttention(turn.cache.bind_attention(layer.attention, layer.number))
                turn.cache.attention[layer.number] = bound
            if bound.rows is not turn.rows:
                bound.binding.bind_ortvalue_input(QKV, turn.rows[0])
                bound.binding.bind_ortvalue_output(CONTEXT, turn.rows[1])
                bound.rows = turn.rows
            layer.attention.run_with_iobinding(bound.binding)

    @staticmethod
    def _attend_wide(layer: _Layer, turn: _Turn) -> None:
        bound = turn.cache.bind_attention(layer.wide_attention, layer.number)
        bound.bind_ortvalue_input(QKV, turn.rows[0])
        bound.bind_ortvalue_output(CONTEXT, turn.rows[1])
        layer.wide_attention.run_with_iobinding(bound)

    @staticmethod
    def _bind(layer: _Layer, views: RowViews) -> None:
        layer.bound = None
        source, target = views.hidden[layer.number % 2], views.hidden[(layer.number + 1) % 2]
        layer.into_attention.bind_ortvalue_input(HIDDEN_IN, source)
        layer.into_attention.bind_ortvalue_output(QKV, views.qkv)
        layer.out_of_attention.bind_ortvalue_input(HIDDEN_IN, source)
        layer.out_of_attention.bind_ortvalue_input(CONTEXT, views.context)
        layer.out_of_attention.bind_ortvalue_output(HIDDEN_OUT, target)
        layer.bound = views

    def _layer(self, number: int) -> _Layer:
        found = self._layers.get(number)
        if found is not None:
            return found
        with self._load_lock:
            found = self._layers.get(number)
            if found is None:
                found = self._layers[number] = self._load(number)
            return found

    def _load(self, number: int) -> _Layer:
        path, factory = self._stack.graph_file(layer_part(number)), self._stack.factory
        pieces = split_layer(path, self._stack.config.shape)
        if self._attention is None:
            # One thread, unless the process has one pool for everything.
            threads = None if self._stack.options.spinning else 1
            narrow = factory.open(path, pieces.attention, threads=threads)
            self._attention = narrow, factory.open(path, pieces.attention) if threads else narrow
        before, after = factory.open(path, pieces.before), factory.open(path, pieces.after)
        return _Layer(number, before, *self._attention, after, before.io_binding(), after.io_binding())


def _shares(turns: Sequence[_Turn], count: int) -> list[list[_Turn]]:
    """``turns`` in ``count`` parts of about equal cost: the dearest first, each to the part that has least so far."""
    parts: list[list[_Turn]] = [[] for _ in range(count)]
    costs = [0] * count
    for turn in sorted(turns, key=lambda turn: -turn.products):
        least = costs.index(min(costs))
        parts[least].append(turn)
        costs[least] += turn.products
    return parts
