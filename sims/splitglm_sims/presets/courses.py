"""Courses by seed: a device that heats up or is busy with other work, and a cloud with quiet and busy hours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from splitglm_partitioner.bounds import check_count, check_number
from splitglm_partitioner.profiles import MAX_SLOWDOWN
from splitglm_sims.world.course import Course

MAX_STEPS: Final = 1_000_000
_THERMAL, _LOAD, _CLOUD = 1, 2, 3  # domains of seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Switching:
    """A two-state Markov process in continuous time: exponential stays, beginning by its long-term shares.

    Attributes:
        quiet_s, busy_s: mean length of a stay.
    """

    quiet_s: float
    busy_s: float

    def __post_init__(self) -> None:
        check_number("quiet_s", self.quiet_s, 1e-3, 1e9)
        check_number("busy_s", self.busy_s, 1e-3, 1e9)

    def draw(self, rng: np.random.Generator, seconds: float) -> tuple[tuple[float, ...], tuple[bool, ...]]:
        """When each stay begins, from 0 up to ``seconds``, and whether it is a busy one."""
        check_number("seconds", seconds, 1e-3, MAX_STEPS * (self.quiet_s + self.busy_s) / 4)
        starts, states, now_s = [], [], 0.0
        busy = bool(rng.random() < self.busy_s / (self.busy_s + self.quiet_s))
        while now_s < seconds:
            starts.append(now_s)
            states.append(busy)
            now_s += max(1e-6, float(rng.exponential(self.busy_s if busy else self.quiet_s)))
            busy = not busy
        return tuple(starts), tuple(states)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thermal:
    """A device whose temperature follows its use, and whose clock follows its temperature; all values are assumed.

    Temperature approaches ``hot_c`` in use and ``cool_c`` at rest, exponentially. Beyond ``limit_c`` the clock falls:
    a slowdown that grows linearly up to ``worst`` at ``hot_c``. A phone loses about half of its throughput within
    minutes of sustained decoding (arXiv 2603.23640), which is the default of ``worst``. Use comes from outside: it does
    not react to the simulated device's own work.
    """

    use: Switching = Switching(quiet_s=180.0, busy_s=120.0)
    cool_c: float = 40.0
    hot_c: float = 90.0
    limit_c: float = 75.0
    worst: float = 2.0
    heating_s: float = 60.0
    step_s: float = 5.0

    def __post_init__(self) -> None:
        check_number("cool_c", self.cool_c, -50.0, self.limit_c)
        check_number("hot_c", self.hot_c, self.limit_c + 1e-3, 150.0)
        check_number("worst", self.worst, 1.0, MAX_SLOWDOWN)
        check_number("heating_s", self.heating_s, 0.1, 1e5)
        check_number("step_s", self.step_s, 0.01, 3600.0)

    def courses(self, seed: int, seconds: float) -> tuple[Course, Course]:
        """Slowdown, and temperature in degrees Celsius, in steps of ``step_s``."""
        starts, busy = self.use.draw(_rng(seed, _THERMAL), seconds)
        steps = math.ceil(seconds / self.step_s)
        check_count("steps of a course", steps, 1, MAX_STEPS)
        times = np.arange(steps) * self.step_s
        used = np.array(busy)[np.searchsorted(np.array(starts), times, side="right") - 1]
        keep = math.exp(-self.step_s / self.heating_s)
        temperature, level = [], self.cool_c
        for hot in used.tolist():
            temperature.append(level)
            level = keep * level + (1.0 - keep) * (self.hot_c if hot else self.cool_c)
        excess = np.clip((np.array(temperature) - self.limit_c) / (self.hot_c - self.limit_c), 0.0, 1.0)
        slowdown = 1.0 + excess * (self.worst - 1.0)
        at = tuple(times.tolist())
        return Course(at, tuple(slowdown.tolist())), Course(at, tuple(temperature))


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundLoad:
    """Other programs that come and go: while they run, passes take ``worst`` times as long at most; assumed."""

    use: Switching = Switching(quiet_s=120.0, busy_s=30.0)
    worst: float = 3.0

    def __post_init__(self) -> None:
        check_number("worst", self.worst, 1.0, MAX_SLOWDOWN)

    def course(self, seed: int, seconds: float) -> Course:
        """Slowdown: 1 when quiet, else drawn anew for each stay, uniform between 1 and ``worst``."""
        rng = _rng(seed, _LOAD)
        starts, busy = self.use.draw(rng, seconds)
        drawn = 1.0 + rng.random(len(busy)) * (self.worst - 1.0)
        return Course(starts, tuple(np.where(np.array(busy), drawn, 1.0).tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudLoad:
    """A cloud's other users: quiet and busy spells, whose lengths are assumed.

    The slowdown of a busy step and its wait are assumed too: the order of the slowdown is that of a large crowd of this
    simulator at the edge of what admission lets in, where decode steps hardly wait; other schedulers make them wait.

    Attributes:
        use: lengths of the spells.
        quiet_queue_s, busy_queue_s: mean wait of a step.
        quiet_slowdown, busy_slowdown: of its computation, which shares batches.
    """

    use: Switching = Switching(quiet_s=300.0, busy_s=60.0)
    quiet_queue_s: float = 0.001
    busy_queue_s: float = 0.01
    quiet_slowdown: float = 1.0
    busy_slowdown: float = 2.0

    def __post_init__(self) -> None:
        for name in ("quiet_queue_s", "busy_queue_s"):
            check_number(name, getattr(self, name), 0.0, 3600.0)
        for name in ("quiet_slowdown", "busy_slowdown"):
            check_number(name, getattr(self, name), 1.0, MAX_SLOWDOWN)

    def courses(self, seed: int, seconds: float) -> tuple[Course, Course]:
        """Queue in seconds, and slowdown; both change at the same times."""
        starts, busy = self.use.draw(_rng(seed, _CLOUD), seconds)
        queue = tuple(self.busy_queue_s if state else self.quiet_queue_s for state in busy)
        return Course(starts, queue), Course(
            starts, tuple(self.busy_slowdown if state else self.quiet_slowdown for state in busy)
        )


def combined(one: Course, other: Course) -> Course:
    """The product of two courses: a slowdown from heat times one from load."""
    starts = tuple(sorted({*one.starts_s, *other.starts_s}))
    return Course(starts, tuple(one.at(start) * other.at(start) for start in starts))


def _rng(seed: int, domain: int) -> np.random.Generator:
    check_count("seed", seed, 0, (1 << 63) - 1)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, domain])))
