"""Keys and values of one request: fixed buffers that ONNX Runtime writes in place."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InternalError, PromptTooLong
from splitglm_core.ranges import LayerRange
from splitglm_glm.config import GlmConfig
from splitglm_glm.onnx_runtime import ort
from splitglm_glm.rotary import RotaryTable
from splitglm_glm.runtime import shrinking_run, trim_heap

# mmap's default is shared memory, which a forked child would write into and which no memory limit counts as ours.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
_RECENT_LENGTHS = 3  # bindings kept besides the one of single tokens: prefill chunk, its remainder, draft length
# Larger ones are made for one pass: that takes a fraction of the pass's time, and every idle request would hold some.
_KEPT_BINDING_BYTES = 256 << 10
RELEASE_POSITIONS = 64
"""A truncation that frees as many positions gives their memory back; undoing a few drafted tokens stays cheap."""
# A pass this long grows the scratch memory by 100 MB and more; the first single token after it gives that back.
_SCRATCH_POSITIONS = 32


class LazyBuffer:
    """Zeroed float32 memory ``[..., positions, width]`` that the system commits page by page at first touch.

    It is mapped directly and excluded from huge pages: a long capacity costs nothing until positions are used.
    """

    def __init__(self, dims: tuple[int, ...]) -> None:
        self.bytes = int(np.prod(dims)) * 4
        self._pages = pages = mmap.mmap(-1, max(1, self.bytes), **_PRIVATE)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            try:
                pages.madvise(mmap.MADV_NOHUGEPAGE)
            except OSError:  # a kernel without huge pages has nothing to switch off
                pass
        self.array: NDArray[np.float32] = np.frombuffer(pages, np.float32, int(np.prod(dims))).reshape(dims)

    def release(self, start: int) -> None:
        """Give the pages that hold nothing but positions from ``start`` on back to the system; they read as zeros then.

        Nothing happens where the system has no such call (Windows).
        """
        if not hasattr(mmap, "MADV_DONTNEED") or self.bytes == 0:
            return
        row, page = 4 * self.array.shape[-1], mmap.PAGESIZE
        part = self.bytes if start == 0 else self.array.shape[-2] * row
        for begin in range(0, self.bytes, part):
            end = begin + part
            first = -(-(begin + start * row) // page) * page
            last = end if end == self.bytes else end // page * page  # the page at the border belongs to both parts
            if first < last:
                self._pages.madvise(mmap.MADV_DONTNEED, first, last - first)


class LengthBinding:
    """Hidden-state buffers for passes of ``n`` positions and the per-layer IOBindings over them.

    Layer ``i`` reads buffer ``i % 2`` and writes the other, so the bindings do not depend on where a range starts.
    """

    def __init__(self, n: int, hidden: int) -> None:
        self.buffers = tuple(np.zeros((1, n, hidden), np.float32) for _ in range(2))
        self.bytes = sum(buffer.nbytes for buffer in self.buffers)
        # Two separate arrays on purpose: an OrtValue aliases the array it was made from.
        self.values = tuple(ort.OrtValue.ortvalue_from_numpy(buffer) for buffer in self.buffers)
        self.by_layer: dict[int, ort.IOBinding] = {}


class BoundAttention:
    """Attention of one layer bound to one cache: everything but where the rows come from and go to.

    Attributes:
        rows: the bound rows, compared by identity, so that a batch of the same sessions binds nothing anew.
    """

    __slots__ = ("binding", "rows")

    def __init__(self, binding: ort.IOBinding) -> None:
        self.binding = binding
        self.rows: tuple[ort.OrtValue, ort.OrtValue] | None = None


class KvCache:
    """Keys and values of one request for a range of layers, float32 ``[1, kv_heads, capacity, head_dim]`` each.

    One request uses a cache at a time; different caches may be used from different threads at once.
    """

    def __init__(self, layers: LayerRange, capacity: int, config: GlmConfig, rotary: RotaryTable) -> None:
        if capacity < 1 or rotary.positions < capacity:
            raise InternalError(f"a cache of {capacity} positions needs a rotary table of as many")
        self.layers = layers
        self.capacity = capacity
        shape = config.shape
        self._hidden = shape.hidden
        self._rotary = rotary
        self._lengths = [0] * len(layers)
        self._written = [0] * len(layers)  # positions whose memory is committed: at least those held
        dims = (1, shape.kv_heads, capacity, shape.head_dim)
        self._buffers = [(LazyBuffer(dims), LazyBuffer(dims)) for _ in layers]
        value = ort.OrtValue.ortvalue_from_numpy
        self._values = [(value(key.array), value(val.array)) for key, val in self._buffers]
        self._last_position = np.zeros(1, np.int32)
        self._total_length = np.zeros((), np.int32)
        self._positions = (value(self._last_position), value(self._total_length))
        self._bindings: dict[int, LengthBinding] = {}
        self._scratch_grown = False
        self.attention: dict[int, BoundAttention] = {}  # by layer, made and used by splitglm_glm.batch

    @property
    def length(self) -> int:
        """Positions held by every layer (0 without layers)."""
        return min(self._lengths, default=0)

    def length_of(self, layers: LayerRange) -> int:
        """Positions held by the layers of ``layers``, which must agree.

        Raises:
            InternalError: they lie outside this cache or hold different numbers of positions.
        """
        if not self.layers.covers(layers):
            raise InternalError(f"layers {layers} are not in a cache of {self.layers}")
        lengths = set(self._lengths[layers.start - self.layers.start : layers.stop - self.layers.start])
        if len(lengths) > 1:
            raise InternalError(f"layers {layers} of a cache hold different numbers of positions")
        return lengths.pop() if lengths else 0

    @property
    def committed(self) -> int:
        """Positions that every layer has memory for at this moment, at most."""
        return max(self._written, default=0)

    def committed_for(self, positions: int) -> int:
        """What ``committed`` becomes when ``positions`` positions are held."""
        return max(self.committed, positions)

    def extend(self, pages: Sequence[Sequence[int]]) -> None:
        """Page ids granted by an accountant of memory change nothing here.

        A layer's positions are one range of addresses, and the system puts pages behind it at first touch (the idea of
        vAttention, Prabhu et al. 2024): virtual memory is the block table.
        """

    def truncate(self, length: int) -> None:
        """Forget positions from ``length`` on; layers that hold fewer are left alone. Nothing is copied.

        Memory goes back to the system when there is some to speak of (``RELEASE_POSITIONS``) or nothing stays.
        """
        if length < 0:
            raise InternalError(f"a cache cannot be truncated to {length} positions")
        self._lengths = [min(held, length) for held in self._lengths]
        for index, (held, written) in enumerate(zip(self._lengths, self._written, strict=True)):
            if written - held >= RELEASE_POSITIONS or (held == 0 and written):
                for buffer in self._buffers[index]:
                    buffer.release(held)
                self._written[index] = held

    def bytes_reserved(self) -> int:
        """Address space of keys and values; memory is committed only for positions that were used."""
        return sum(key.bytes + val.bytes for key, val in self._buffers)

    def close(self) -> None:
        """Give the memory back; the cache must not be used afterwards."""
        self._bindings.clear()
        self.attention.clear()
        self._values.clear()
        self._buffers.clear()
        self._lengths, self._written = [], []
        self.layers = LayerRange(self.layers.start, self.layers.start)

    def run(
        self, hidden: NDArray[np.float32], layers: LayerRange, session_of: Callable[[int], ort.InferenceSession]
    ) -> NDArray[np.float32]:
        """Run ``hidden [n, hidden]`` at the next positions of ``layers`` and append them; returns a new array.

        Raises:
            PromptTooLong: the positions exceed the capacity; the cache is unchanged.
        """
        n = hidden.shape[0]
        stop = self.begin(layers, n)
        if n == 0 or len(layers) == 0:
            return hidden.copy()
        binding = self._binding(n)
        binding.buffers[layers.start % 2][0] = hidden
        release = self._scratch_grown and n == 1
        for layer in layers:
            session = session_of(layer)
            bound = binding.by_layer.get(layer)
            if bound is None:
                bound = binding.by_layer[layer] = self._bind(session, layer, binding)
            session.run_with_iobinding(bound, shrinking_run() if release and layer == layers.stop - 1 else None)
        if release:
            trim_heap()
        self._scratch_grown = n >= _SCRATCH_POSITIONS or (self._scratch_grown and not release)
        self.finish(layers, stop)
        result: NDArray[np.float32] = binding.buffers[layers.stop % 2][0].copy()
        return result

    def begin(self, layers: LayerRange, n: int) -> int:
        """Prepare a pass of ``n`` positions through ``layers``; returns what they hold once it is finished.

        Raises:
            PromptTooLong: the positions exceed the capacity; the cache is unchanged.
        """
        stop = self.length_of(layers) + n
        if stop > self.capacity:
            raise PromptTooLong(
                f"{stop} positions do not fit a cache of {self.capacity}", "shorten the prompt or ask for fewer tokens"
            )
        self._last_position[0] = stop - 1
        self._total_length[...] = stop
        for layer in layers:
            at = layer - self.layers.start
            self._written[at] = max(self._written[at], stop)  # also when the pass fails half-way
        return stop

    def finish(self, layers: LayerRange, stop: int) -> None:
        """The pass went through all of ``layers``: they hold ``stop`` positions now."""
        for layer in layers:
            self._lengths[layer - self.layers.start] = stop

    def bind_attention(self, session: ort.InferenceSession, layer: int) -> ort.IOBinding:
        """A binding of ``session`` to this cache's keys, values, positions and rotary table of ``layer``."""
        key, value = self._values[layer - self.layers.start]
        bound = session.io_binding()
        inputs = {
            "past_key": key,
            "past_value": value,
            "last_position": self._positions[0],
            "total_length": self._positions[1],
            "cos": self._rotary.cos,
            "sin": self._rotary.sin,
        }
        for name, bound_value in inputs.items():
            bound.bind_ortvalue_input(name, bound_value)
        bound.bind_ortvalue_output("present_key", key)
        bound.bind_ortvalue_output("present_value", value)
        return bound

    def _binding(self, n: int) -> LengthBinding:
        found = self._bindings.pop(n, None) or LengthBinding(n, self._hidden)
        if found.bytes > _KEPT_BINDING_BYTES:
            return found
        others = [length for length in self._bindings if length != 1]
        if n != 1 and len(others) >= _RECENT_LENGTHS:
            del self._bindings[others[0]]  # dicts keep insertion order: the least recently used is first
        self._bindings[n] = found
        return found

    def _bind(self, session: ort.InferenceSession, layer: int, binding: LengthBinding) -> ort.IOBinding:
        bound = self.bind_attention(session, layer)
        bound.bind_ortvalue_input("hidden_in", binding.values[layer % 2])
        bound.bind_ortvalue_output("hidden_out", binding.values[(layer + 1) % 2])
        return bound
