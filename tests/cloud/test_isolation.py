"""R10: what a session is told never depends on who else is there."""

from __future__ import annotations

import pytest
from engine_bench import Kind
from isolation_world import IsolationWorld, Verdict

TOLERANCE = 1e-4
"""fp32 rounding of one pass over a prompt against the same prompt in pieces."""


def judged(kind: Kind, seeds: range) -> Verdict:
    verdict = Verdict()
    for seed in seeds:
        world = IsolationWorld(kind, seed)
        world.run()
        world.compare(verdict)
    return verdict


def test_random_schedules_tell_every_session_what_it_is_told_alone(kind: Kind) -> None:
    verdict = judged(kind, range(60))
    assert verdict.max_error < TOLERANCE and verdict.flips == 0
    assert verdict.rows > 500 and verdict.tokens > 500 and verdict.refused > 5 and verdict.rebuilt > 20


@pytest.mark.slow
def test_a_thousand_random_schedules(kind: Kind) -> None:
    verdict = judged(kind, range(1000, 2000))
    assert verdict.max_error < TOLERANCE and verdict.flips == 0


def test_the_world_sees_a_leak(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test: rows that reach a neighbour show."""
    forward = type(kind.runner).forward

    def leaking(self: object, rows: object, riders: object, layers: object) -> object:
        out = forward(self, rows, riders, layers)  # type: ignore[arg-type]
        return out + 1e-2 * out[:1] if len(riders) > 1 and self is kind.runner else out  # type: ignore[arg-type]

    monkeypatch.setattr(type(kind.runner), "forward", leaking)
    assert judged(kind, range(6)).max_error > TOLERANCE
