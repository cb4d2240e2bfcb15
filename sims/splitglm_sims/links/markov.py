"""Links that nobody recorded: a Markov chain of states, each with a distribution of rates up and down.

The model is that of Markov-modulated processes (Fischer and Meier-Hellstern, Performance Evaluation 18, 1993), in
slots of equal length as in CS2P (Sun et al., SIGCOMM 2016): the state decides from which distribution a slot's rates
are drawn, so dwell times are geometric and both directions are correlated through the state. A state with zero rates
is an outage.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitglm_core.errors import InputError
from splitglm_partitioner.bounds import check_count, check_number, check_seconds
from splitglm_sims.traces import MAX_RATE_BYTES_PER_S, RateTrace
from splitglm_sims.world.scene import INITIAL_WINDOW_BYTES, LinkScene

MAX_STATES: Final = 64
MAX_SLOTS: Final = 1_000_000
_ROW_SLACK: Final = 1e-6  # a row printed with few digits still counts as a distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """What the link can carry while it is in this state.

    Attributes:
        name: for people.
        down_bytes_per_s, up_bytes_per_s: quantiles at evenly spaced probabilities from 0 to 1, never falling;
            interpolated on a logarithmic scale. One value is a constant rate; all zeros are an outage.
        next: chance of each state in the next slot.
    """

    name: str
    down_bytes_per_s: tuple[float, ...]
    up_bytes_per_s: tuple[float, ...]
    next: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("down_bytes_per_s", "up_bytes_per_s"):
            check_quantiles(name, getattr(self, name), MAX_RATE_BYTES_PER_S)
        for chance in self.next:
            check_number("a chance in next", chance, 0.0, 1.0)
        if abs(sum(self.next) - 1.0) > _ROW_SLACK:
            raise InputError(f"the chances in next of state {self.name!r} sum to {sum(self.next):.6f} and not to 1")

    @property
    def out(self) -> bool:
        """Whether a direction carries nothing."""
        return self.down_bytes_per_s[-1] == 0.0 or self.up_bytes_per_s[-1] == 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkovLink:
    """Parameters of a generated link.

    Attributes:
        states: of the chain, which must be able to reach every state from every other.
        slot_s: how long rates hold.
        memory: chance that a slot keeps its predecessor's place among the quantiles, each direction for itself; it
            leaves every state's distribution as it is.
        rtt_quantiles_s: of the round trip without queues, evenly spaced from probability 0 to 1; each scene draws one.
        jitter_s: as in ``LinkScene``.
        rest_after_s: None for a link that never rests.
        promotion_s, window_bytes: as in ``LinkScene``.
    """

    states: tuple[LinkState, ...]
    slot_s: float = 1.0
    memory: float = 0.0
    rtt_quantiles_s: tuple[float, ...]
    jitter_s: float = 0.0
    rest_after_s: float | None = None
    promotion_s: float = 0.0
    window_bytes: int | None = INITIAL_WINDOW_BYTES
    _rows: tuple[tuple[float, ...], ...] = field(init=False, repr=False, compare=False)
    _stationary: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_count("states", len(self.states), 1, MAX_STATES)
        check_number("slot_s", self.slot_s, 1e-3, 3600.0)
        check_number("memory", self.memory, 0.0, 0.999)
        check_quantiles("rtt_quantiles_s", self.rtt_quantiles_s, 60.0)
        for name in ("jitter_s", "promotion_s"):
            check_seconds(name, getattr(self, name))
        if self.rest_after_s is not None:
            check_seconds("rest_after_s", self.rest_after_s)
        if any(len(state.next) != len(self.states) for state in self.states):
            raise InputError(f"next holds one chance for each of the {len(self.states)} states")
        if all(state.out for state in self.states):
            raise InputError("a link needs a state that carries data both ways")
        chances = np.array([state.next for state in self.states])
        object.__setattr__(self, "_rows", tuple(tuple(accumulate(row)) for row in chances.tolist()))
        object.__setattr__(self, "_stationary", stationary(chances))

    @property
    def occupancy(self) -> NDArray[np.float64]:
        """Long-term share of time in each state; float64 ``[states]``."""
        return self._stationary.copy()

    def path(self, rng: np.random.Generator, slots: int) -> NDArray[np.int64]:
        """States of consecutive slots; int64 ``[slots]``. The first one carries data: no outage at time 0."""
        check_count("slots", slots, 1, MAX_SLOTS)
        carrying = self._stationary * [not state.out for state in self.states]
        state = int(rng.choice(len(self.states), p=carrying / carrying.sum()))
        last = len(self.states) - 1
        out = [state]
        for u in rng.random(slots - 1).tolist():
            state = min(last, bisect_right(self._rows[state], u))
            out.append(state)
        return np.array(out, dtype=np.int64)


def generate(link: MarkovLink, *, seed: int, seconds: float) -> LinkScene:
    """A scene whose traces last ``seconds`` (whole slots) and then repeat; equal seeds give equal scenes.

    Raises:
        InputError: more than a million slots, or less than one.
    """
    check_count("seed", seed, 0, (1 << 63) - 1)
    check_number("seconds", seconds, link.slot_s, MAX_SLOTS * link.slot_s)
    rng = np.random.Generator(np.random.Philox(seed))
    rtt_s = float(quantile(link.rtt_quantiles_s, rng.random(1))[0])
    path = link.path(rng, round(seconds / link.slot_s))
    rates = np.zeros((2, len(path)))
    draws = np.stack([_places(rng, len(path), link.memory) for _ in rates])
    for number, state in enumerate(link.states):
        here = path == number
        for way, quantiles in enumerate((state.down_bytes_per_s, state.up_bytes_per_s)):
            rates[way, here] = quantile(quantiles, draws[way, here])
    starts = tuple((np.arange(len(path)) * link.slot_s).tolist())
    down, up = (RateTrace(starts, tuple(row.tolist()), len(path) * link.slot_s) for row in rates)
    return LinkScene(
        up=up,
        down=down,
        rtt_s=rtt_s,
        jitter_s=link.jitter_s,
        rest_after_s=math.inf if link.rest_after_s is None else link.rest_after_s,
        promotion_s=link.promotion_s,
        window_bytes=link.window_bytes,
    )


def _places(rng: np.random.Generator, slots: int, memory: float) -> NDArray[np.float64]:
    """Uniform places among the quantiles, each kept with chance ``memory``; float64 ``[slots]``."""
    fresh = rng.random(slots)
    kept = rng.random(slots) < memory
    kept[0] = False
    origin = np.maximum.accumulate(np.where(kept, 0, np.arange(slots)))
    places: NDArray[np.float64] = fresh[origin]
    return places


def quantile(values: tuple[float, ...], chances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of the distribution whose evenly spaced quantiles are ``values``, logarithmic in between.

    Below a quantile of 0 there is no logarithm: up to the first positive one, all is 0.
    """
    if len(values) == 1:
        return np.full(len(chances), values[0])
    grid = np.linspace(0.0, 1.0, len(values))
    positive = np.array([value for value in values if value > 0.0])
    if not len(positive):
        return np.zeros(len(chances))
    grid = grid[len(values) - len(positive) :]
    drawn: NDArray[np.float64] = np.exp(np.interp(chances, grid, np.log(positive)))
    return np.where(chances < grid[0], 0.0, drawn)


def stationary(chances: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distribution over states that a transition matrix ``[states, states]`` keeps; float64 ``[states]``.

    Raises:
        InputError: some state cannot be reached from some other, so that there is no single one.
    """
    count = len(chances)
    reach = (chances > 0.0) | np.eye(count, dtype=bool)
    for _ in range(count.bit_length()):
        reach = (reach.astype(np.float64) @ reach.astype(np.float64)) > 0.0
    if not reach.all():
        start, end = (int(index) for index in np.argwhere(~reach)[0])
        raise InputError(f"state {end} can never be reached from state {start}", "correct the chances in next")
    system = np.vstack([chances.T - np.eye(count), np.ones(count)])
    solved = np.linalg.lstsq(system, np.concatenate([np.zeros(count), [1.0]]), rcond=None)[0]
    shares: NDArray[np.float64] = np.clip(solved, 0.0, None)
    shares /= shares.sum()
    return shares


def check_quantiles(name: str, values: tuple[float, ...], high: float) -> None:
    """Raise InputError unless ``values`` are 1 to 101 numbers in ``[0, high]`` that never fall."""
    check_count(f"number of {name}", len(values), 1, 101)
    for value in values:
        check_number(name, value, 0.0, high)
    if any(a > b for a, b in pairwise(values)):
        raise InputError(f"the quantiles {name} never fall")
