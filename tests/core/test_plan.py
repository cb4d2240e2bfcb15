"""Plans and ranges: what can be built is a valid cut, and every valid cut can be built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, HeadSide, SplitPlan
from splitglm_core.ranges import LayerRange

numbers = st.integers(-1, 12)


@given(layers=numbers, s=numbers, t=numbers, head=st.sampled_from(HeadSide))
def test_a_plan_is_refused_or_covers_every_layer_once(layers: int, s: int, t: int, head: HeadSide) -> None:
    try:
        plan = SplitPlan(layers=layers, s=s, t=t, head=head)
    except InputError:
        return
    assert [*plan.front, *plan.back, *plan.tail] == list(range(layers))
    sends_hidden = plan.arm in (Arm.SPLIT, Arm.USHAPE)
    assert sends_hidden == (len(plan.front) > 0 and len(plan.back) > 0)
    assert (plan.arm is Arm.DEVICE) == (len(plan.back) == 0)
    assert (plan.head is HeadSide.DEVICE) == (plan.arm in (Arm.DEVICE, Arm.USHAPE))
    assert plan.arm is not Arm.USHAPE or s >= 1
    assert str(layers) in str(plan)


@pytest.mark.parametrize(
    ("s", "t", "head", "arm"),
    [
        (8, 8, HeadSide.DEVICE, Arm.DEVICE),
        (0, 8, HeadSide.CLOUD, Arm.CLOUD),
        (3, 8, HeadSide.CLOUD, Arm.SPLIT),
        (3, 6, HeadSide.DEVICE, Arm.USHAPE),
        (3, 8, HeadSide.DEVICE, Arm.USHAPE),
    ],
)
def test_each_arm_has_its_form(s: int, t: int, head: HeadSide, arm: Arm) -> None:
    assert SplitPlan(layers=8, s=s, t=t, head=head).arm is arm


@pytest.mark.parametrize(
    ("s", "t", "head"),
    [
        (0, 6, HeadSide.DEVICE),  # the embedding rows would be sent: as good as the ids
        (3, 6, HeadSide.CLOUD),  # layers 6 and 7 would run nowhere
        (8, 8, HeadSide.CLOUD),
        (3, 3, HeadSide.DEVICE),  # nothing in the cloud, and not written as device only
        (5, 3, HeadSide.CLOUD),
        (3, 9, HeadSide.CLOUD),
        (-1, 8, HeadSide.CLOUD),
    ],
)
def test_a_cut_that_makes_no_sense_is_refused(s: int, t: int, head: HeadSide) -> None:
    with pytest.raises(InputError):
        SplitPlan(layers=8, s=s, t=t, head=head)


def test_the_two_ends_have_names_of_their_own() -> None:
    assert SplitPlan.device_only(8).arm is Arm.DEVICE
    assert SplitPlan.cloud_only(8).arm is Arm.CLOUD


@pytest.mark.parametrize("wrong", [{"chunk_tokens": 0}, {"draft_tokens": -1}])
def test_counts_of_a_plan_are_bounded(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        SplitPlan(layers=8, s=3, t=8, head=HeadSide.CLOUD, **wrong)  # type: ignore[arg-type]


@given(numbers, numbers, numbers, numbers)
def test_ranges_are_half_open_sets_of_layers(a: int, b: int, c: int, d: int) -> None:
    try:
        outer, inner = LayerRange(a, b), LayerRange(c, d)
    except InputError:
        assert not (0 <= a <= b and 0 <= c <= d)
        return
    assert set(outer) == set(range(a, b)) and len(outer) == b - a
    assert outer.covers(inner) == (set(inner) <= set(outer))
    assert all((layer in outer) == (a <= layer < b) for layer in range(-2, 14))
    assert "3" not in outer
