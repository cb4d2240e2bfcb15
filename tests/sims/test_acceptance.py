"""Draft statistics: chances come from measured tokens per round, costs from the device, genres from the table."""

from __future__ import annotations

from importlib import resources
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_sims.presets.machines import device_preset
from splitglm_sims.workloads.acceptance import acceptance_table, parse_acceptance, survival_of

TABLE = acceptance_table()
TEXT = resources.files("splitglm_sims.workloads").joinpath("acceptance.toml").read_text("utf-8")


def test_differences_of_tokens_per_round_are_the_chances() -> None:
    assert survival_of([1.5, 1.75, 1.8]) == pytest.approx((0.5, 0.25, 0.05))


@given(st.lists(st.floats(0.0, 1.2), min_size=1, max_size=16))
def test_chances_never_rise_and_keep_the_sum_unless_cut(steps: list[float]) -> None:
    tokens, last = [], 1.0
    for step in steps:
        last += step
        tokens.append(last)
    found = survival_of(tokens)
    assert len(found) == len(steps)
    assert all(0.0 <= b <= a + 1e-12 for a, b in pairwise(found)) and found[0] <= 1.0
    if found[0] < 1.0:
        assert sum(found) == pytest.approx(sum(steps), abs=1e-9)


@pytest.mark.parametrize("entry", TABLE.measured, ids=lambda entry: f"{entry.drafter}-{entry.genre}")
def test_the_statistics_give_back_the_measured_tokens_per_round(entry: object) -> None:
    device = device_preset("edge-1.5b-laptop").profile()
    found = {draft.name: draft for draft in TABLE.drafts(device)[entry.genre]}[entry.drafter]  # type: ignore[attr-defined]
    for number, tokens in enumerate(entry.tokens_per_round, 1):  # type: ignore[attr-defined]
        assert found.tokens_per_round(number) == pytest.approx(tokens, abs=0.05)


def test_a_genre_that_nobody_measured_lies_half_way() -> None:
    assert TABLE.genres == ("chat", "edit", "summarise")
    for drafter in TABLE.drafters:
        chat, edit, mean = (TABLE.survival(drafter.name, genre) for genre in TABLE.genres)
        assert chat is not None and edit is not None and mean is not None
        assert sum(mean) == pytest.approx((sum(chat) + sum(edit)) / 2, abs=0.01)


def test_costs_are_those_of_the_device() -> None:
    device = device_preset("edge-1.5b-laptop").profile()
    found = {draft.name: draft for draft in TABLE.drafts(device)["chat"]}
    assert set(found) == {"lookup", "exit12", "exit18", "exit24", "draft-int8", "draft-int4"}
    assert found["draft-int4"].s_per_token == pytest.approx(42.6e-3, rel=0.01)  # as measured at 512 tokens
    assert found["draft-int8"].s_per_token == pytest.approx(61.3e-3, rel=0.01)
    assert (found["exit12"].front_layers, found["exit12"].shares_front) == (11, True)
    assert found["exit12"].s_per_token < found["exit24"].s_per_token < found["draft-int4"].s_per_token
    assert found["lookup"].front_layers == 0


def test_a_precision_that_was_never_timed_drafts_nothing() -> None:
    found = TABLE.drafts(device_preset("demo-2core").profile())
    assert "draft-int4" not in {draft.name for draft in found["edit"]}


def test_a_device_has_the_drafters_that_are_named() -> None:
    device = device_preset("demo-2core").profile()
    assert {draft.name for draft in TABLE.drafts(device, ["lookup"])["summarise"]} == {"lookup"}
    assert TABLE.drafts(device, [])["chat"] == ()
    with pytest.raises(InputError, match="no drafter 'medusa'"):
        TABLE.drafts(device, ["medusa"])


def test_nothing_is_claimed_of_a_genre_without_figures() -> None:
    assert TABLE.survival("lookup", "poetry") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('drafter = "lookup"', 'drafter = "look-up"'), "measured and not described"),
        (("depth = 0.4", "depth = 0.4\nprecision = 'int8'"), r"mine\.drafters\[1\]: drafter 'exit12' states exactly"),
        (("depth = 0.4", "deep = 0.4"), r"mine\.drafters\[1\] has the unknown field 'deep'"),
        (("1.19,", "0.19,"), "tokens_per_round = 0.19 is outside"),
        (('mean_of = ["chat", "edit"]', 'mean_of = ["prose"]'), "mean of measured genres"),
        (('genre = "summarise"', 'genre = "chat"'), "not measured itself"),
        (('name = "exit12"', 'name = "lookup"'), "each drafter once"),
    ],
)
def test_a_malformed_table_is_refused_by_name_and_key(change: tuple[str, str], said: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(InputError, match=said):
        parse_acceptance(TEXT.replace(*change, 1), "mine")
