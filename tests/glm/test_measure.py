"""Measuring layers, on machines of known speed that keep time themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_glm.measure import GROWTH_LAYERS, GROWTH_POSITIONS, MEASURED_POSITIONS, LayerSeconds, measure

Float32 = NDArray[np.float32]
LAYERS = LayerRange(2, 7)


@dataclass
class Positions:
    """A cache of which only the length counts."""

    layers: LayerRange
    capacity: int
    length: int = 0
    closed: bool = False

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length, "as strict as the caches of the runners"
        self.length = length

    def close(self) -> None:
        self.closed = True


@dataclass
class KnownMachine:
    """A layer takes ``decode_s`` and ``decode_growth_s`` per 1000 of context for a row alone, else
    ``prefill_s`` and ``prefill_growth_s`` for each; ``disturbed_s`` comes on top of a pass, by its number.
    """

    decode_s: float = 4e-4
    decode_growth_s: float = 2e-4
    prefill_s: float = 5e-5
    prefill_growth_s: float = 3e-5
    disturbed_s: Callable[[int], float] = lambda _: 0.0
    clock_s: float = 0.0
    passes: int = 0
    caches: list[Positions] = field(default_factory=list)

    def now_s(self) -> float:
        return self.clock_s

    def new_cache(self, layers: LayerRange, capacity: int) -> Positions:
        self.caches.append(Positions(layers, capacity))
        return self.caches[-1]

    def embed(self, ids: NDArray[np.int64]) -> Float32:
        self.clock_s += 1e-6 * len(ids)
        return np.zeros((len(ids), 8), np.float32)

    def forward(self, hidden: Float32, cache: Positions, layers: LayerRange) -> Float32:
        rows, thousands = len(hidden), cache.length / 1000
        if rows == 1:
            seconds = self.decode_s + self.decode_growth_s * thousands
        else:
            seconds = rows * (self.prefill_s + self.prefill_growth_s * thousands)
        self.clock_s += len(layers) * seconds + self.disturbed_s(self.passes)
        self.passes += 1
        cache.length += rows
        assert cache.length <= cache.capacity and layers == cache.layers and not cache.closed
        return hidden

    def logits(self, hidden: Float32) -> Float32:
        self.clock_s += 1e-3
        return hidden


def shape_of(positions: int) -> ModelShape:
    return ModelShape(
        layers=8, hidden=8, intermediate=16, heads=2, kv_heads=1, head_dim=4, vocab=100, max_positions=positions,
        tied_head=True,
    )  # fmt: skip


def measured(machine: KnownMachine, positions: int = 8192) -> LayerSeconds:
    shape = shape_of(positions)
    return measure(machine, LAYERS, shape=shape, embedding=True, head=True, now_s=machine.now_s)


def test_what_a_machine_takes_is_what_is_measured() -> None:
    machine = KnownMachine()
    seconds = measured(machine)
    assert seconds.decode_s == pytest.approx(4e-4 + 2e-4 * seconds.decode_context_tokens / 1000, rel=0.01)
    assert seconds.decode_s_per_1k_context == pytest.approx(2e-4, rel=0.01)
    assert dict(seconds.prefill_s_per_token) == pytest.approx({16: 5e-5, 128: 5e-5}, rel=0.01)
    assert seconds.prefill_s_per_token_per_1k_context == pytest.approx(3e-5, rel=0.01)
    assert (seconds.embed_s, seconds.head_s) == pytest.approx((1e-6, 1e-3), rel=0.01)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_growth_of_prefill_stands_a_machine_that_others_disturb(data: st.DataObject) -> None:
    """As long as one of the five passes at either depth is left alone, others may take half a second more."""
    bad = data.draw(st.sets(st.integers(0, 100), max_size=40).filter(lambda some: not has_run(some, 5)))
    seconds = measured(KnownMachine(disturbed_s=lambda number: 0.5 if number in bad else 0.0))
    assert seconds.prefill_s_per_token_per_1k_context == pytest.approx(3e-5, rel=0.01)


def has_run(numbers: set[int], length: int) -> bool:
    """Whether ``numbers`` hold so many passes in a row when every second one is counted."""
    return any(all(first + 2 * i in numbers for i in range(length)) for first in numbers)


def test_growth_is_never_negative() -> None:
    assert measured(KnownMachine(prefill_growth_s=-1e-5)).prefill_s_per_token_per_1k_context == 0.0
    assert measured(KnownMachine(decode_growth_s=-1e-5)).decode_s_per_1k_context == 0.0


@pytest.mark.parametrize("positions", [3, 4, 16, 100, 130, 300])
def test_a_model_of_few_positions_is_measured_within_them(positions: int) -> None:
    machine = KnownMachine()
    seconds = measured(machine, positions)
    assert all(cache.capacity <= positions for cache in machine.caches)
    assert seconds.prefill_s_per_token_per_1k_context in (0.0, pytest.approx(3e-5, rel=0.02))


def test_growth_takes_few_layers_and_bounded_memory_and_gives_it_back() -> None:
    machine = KnownMachine()
    measured(machine)
    first, *deep = machine.caches
    assert first.capacity <= MEASURED_POSITIONS + 1 and len(deep) == 2
    assert all(len(cache.layers) == GROWTH_LAYERS and cache.capacity <= GROWTH_POSITIONS for cache in deep)
    assert all(cache.closed for cache in machine.caches)


def test_a_slow_machine_is_timed_at_a_shallower_context() -> None:
    """A hundred times slower than a small model on a CPU core: the way to the depth is cut, the growth still found."""
    slow = KnownMachine(decode_s=4e-2, prefill_s=5e-3, prefill_growth_s=1e-3)
    seconds = measured(slow)
    assert max(cache.capacity for cache in slow.caches[1:]) < 600
    assert seconds.prefill_s_per_token_per_1k_context == pytest.approx(1e-3, rel=0.01)
