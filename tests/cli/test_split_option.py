"""``--split`` means exactly what its help says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_cli.split_option import SplitOption
from splitglm_core.errors import InputError, NoFeasiblePlan
from splitglm_core.plan import Arm, Privacy
from splitglm_partitioner.request import Fixed

N = 12


def fixed(text: str, privacy: Privacy = Privacy.OPEN) -> Fixed:
    option = SplitOption.parse(text)
    assert option is not None
    return option.fixed(N, privacy)


def test_nothing_given_fixes_nothing() -> None:
    assert SplitOption.parse(None) is None


def test_the_ends_are_cloud_only_and_device_only() -> None:
    assert fixed("0") == Fixed(arm=Arm.CLOUD)
    assert all(fixed(str(N), privacy) == Fixed(arm=Arm.DEVICE) for privacy in Privacy)


@given(st.integers(1, N - 1))
def test_one_number_puts_the_head_where_the_answer_may_be_known(s: int) -> None:
    for privacy in (Privacy.OPEN, Privacy.NO_PROMPT):
        assert fixed(str(s), privacy) == Fixed(arm=Arm.SPLIT, s=s)
    assert fixed(str(s), Privacy.NO_TEXT) == Fixed(arm=Arm.USHAPE, s=s, t=N)


@given(st.integers(0, N + 2), st.integers(0, N + 2))
def test_two_numbers_are_a_u_shape_or_an_error(s: int, t: int) -> None:
    if 1 <= s < t <= N:
        assert fixed(f"{s}:{t}", Privacy.NO_TEXT) == Fixed(arm=Arm.USHAPE, s=s, t=t)
    else:
        with pytest.raises(InputError):
            fixed(f"{s}:{t}")


@pytest.mark.parametrize("text", ["", "x", "-1", "1:", ":2", "1:2:3", "1.5", "²", "123456", "1 "])
def test_anything_else_is_refused_before_a_model_is_opened(text: str) -> None:
    with pytest.raises(InputError):
        SplitOption.parse(text)


@pytest.mark.parametrize(
    ("text", "privacy"), [("0", Privacy.NO_PROMPT), ("0", Privacy.NO_TEXT), ("3", Privacy.LOCAL), ("0", Privacy.LOCAL)]
)
def test_a_cut_that_the_privacy_forbids_says_which_privacy_allows_it(text: str, privacy: Privacy) -> None:
    with pytest.raises(NoFeasiblePlan) as caught:
        fixed(text, privacy)
    assert "--privacy" in caught.value.hint


def test_a_cut_beyond_the_model_is_refused() -> None:
    with pytest.raises(InputError):
        fixed(str(N + 1))
