"""Sampling parameters, model shapes, the clock and the metric names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from splitglm_core import telemetry
from splitglm_core.clock import ManualClock
from splitglm_core.errors import InputError
from splitglm_core.sampling import SamplingParams
from splitglm_core.shapes import ModelShape


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": 101.0},
        {"temperature": 1e-310},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_k": -1},
        {"top_k": 2**21},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"frequency_penalty": 101.0},
        {"presence_penalty": -101.0},
        {"seed": -1},
        {"seed": 2**64},
    ],
    ids=str,
)
def test_sampling_parameters_outside_their_range_are_refused(wrong: Mapping[str, float]) -> None:
    with pytest.raises(InputError):
        SamplingParams(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "needs"),
    [
        ({}, False),
        ({"temperature": 1.0, "top_p": 0.9, "top_k": 40, "seed": 7}, False),
        ({"repetition_penalty": 1.1}, True),
        ({"frequency_penalty": 0.1}, True),
        ({"presence_penalty": -0.1}, True),
    ],
    ids=str,
)
def test_only_penalties_need_the_tokens_already_generated(params: Mapping[str, float], needs: bool) -> None:
    assert SamplingParams(**params).needs_history is needs  # type: ignore[arg-type]


def test_a_shape_counts_the_weights_and_the_cache_of_a_layer() -> None:
    shape = ModelShape(
        layers=2, hidden=6, intermediate=10, heads=3, kv_heads=1, head_dim=2, vocab=11, max_positions=64, tied_head=True
    )
    # q 6x6, k and v 6x2 each, o 6x6, gate and up 6x10 each, down 10x6
    assert shape.layer_parameters == 36 + 12 + 12 + 36 + 60 + 60 + 60
    assert shape.kv_bytes_per_token(layers=2) == 2 * 2 * 1 * 2 * 4
    assert shape.kv_bytes_per_token(layers=1, bytes_per_value=2) == 8


def test_a_manual_clock_moves_only_forward_and_only_when_told() -> None:
    clock = ManualClock(5.0)
    assert clock.now_s() == clock.now_s() == 5.0
    clock.advance(1.5)
    assert clock.now_s() == 6.5
    with pytest.raises(ValueError, match="never goes back"):
        clock.advance(-0.1)


def test_metric_names_are_prometheus_names_of_this_product_and_unique() -> None:
    names = [value for key, value in vars(telemetry).items() if key.isupper() and isinstance(value, str)]
    names.remove(telemetry.PREFIX)
    assert len(names) == len(set(names)) > 10
    assert all(re.fullmatch(r"splitglm_[a-z][a-z0-9_]*[a-z]", name) for name in names)
