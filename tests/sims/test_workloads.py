"""Workloads: jobs follow from the seed, turns grow on their caches, lengths have the published means."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitglm_core.errors import InputError
from splitglm_core.plan import Privacy
from splitglm_sims.load.scenario import Process
from splitglm_sims.workloads.jobs import jobs
from splitglm_sims.workloads.workload import WORKLOADS, LogNormal, Workload, load_workload, workload_names
from splitglm_sims.world.scene import Job

HOUR_S = 3600.0


def opened(name: str = "summarise", **changes: object) -> Workload:
    changes = {"conversations_per_s": 0.05, **changes}
    return replace(load_workload(name), users=0, pause_s=None, **changes)  # type: ignore[arg-type]


def gaps_of(found: tuple[Job, ...]) -> np.ndarray:
    return np.diff([job.at_s for job in found])


@pytest.mark.parametrize("name", workload_names())
@given(seed=st.integers(0, 2**63 - 1))
@settings(max_examples=15, deadline=None)
def test_every_seed_gives_conversations_that_grow_on_their_caches(name: str, seed: int) -> None:
    workload = load_workload(name)
    found = jobs(workload, seed, seconds=HOUR_S)
    assert found == jobs(workload, seed, seconds=HOUR_S)
    assert all(a.at_s <= b.at_s for a, b in pairwise(found))
    last: dict[int, Job] = {}
    for job in found:
        assert 0.0 <= job.at_s < HOUR_S
        assert job.prompt_tokens + job.max_new_tokens <= workload.context_tokens
        before = last.get(job.conversation)
        if before is None:
            assert (job.turn, job.shared_tokens) == (0, 0)
        else:
            assert job.turn == before.turn + 1
            assert job.shared_tokens == before.prompt_tokens + before.new_tokens
            assert job.privacy is before.privacy
            assert job.at_s > before.at_s
        last[job.conversation] = job


def test_the_shipped_workloads_are_the_four_genres() -> None:
    assert workload_names() == ("chat", "edit", "mixed", "summarise")
    assert load_workload("mixed").genres == ("chat", "edit", "summarise")
    mixed = {kind.genre: kind for kind in load_workload("mixed").kinds}
    for name in ("chat", "edit", "summarise"):
        (kind,) = load_workload(name).kinds
        assert replace(mixed[name], share=1.0) == kind


@pytest.mark.parametrize("workload", [load_workload("chat"), opened("chat"), replace(load_workload("mixed"), users=5)])
def test_a_shorter_run_is_the_beginning_of_a_longer_one(workload: Workload) -> None:
    day = jobs(workload, 4, seconds=24 * HOUR_S)
    assert jobs(workload, 4, seconds=HOUR_S) == tuple(job for job in day if job.at_s < HOUR_S)
    assert jobs(workload, 4, count=50) == day[:50]
    assert jobs(workload, 5, count=50) != day[:50]


def test_lengths_and_turns_have_the_published_means() -> None:
    """LMSYS-Chat-1M: 2.0 turns, 69.5 prompt and 214.5 answer tokens; CNN/DailyMail: 781 and 56 words."""
    (kind,) = load_workload("chat").kinds
    uncut = replace(load_workload("chat"), context_tokens=1 << 20, kinds=(replace(kind, max_new_tokens=(4000,)),))
    found = jobs(uncut, 1, count=20_000)
    added = [job.prompt_tokens - job.shared_tokens - (0 if job.turn else kind.system_tokens) for job in found]
    assert np.mean(added) == pytest.approx(69.5, rel=0.06)
    assert np.mean([job.new_tokens for job in found]) == pytest.approx(214.5, rel=0.06)
    assert len(found) / len({job.conversation for job in found}) == pytest.approx(2.0, rel=0.05)
    articles = jobs(load_workload("summarise"), 1, count=10_000)
    assert np.mean([job.prompt_tokens - 30 for job in articles]) == pytest.approx(781 * 1.3, rel=0.05)
    assert np.mean([job.new_tokens for job in articles]) == pytest.approx(56 * 1.3, rel=0.05)


def test_an_edit_is_about_as_long_as_what_was_given() -> None:
    found = [job for job in jobs(load_workload("edit"), 2, count=5000) if job.new_tokens < job.max_new_tokens]
    ratios = [job.new_tokens / (job.prompt_tokens - job.shared_tokens - (0 if job.turn else 60)) for job in found]
    assert np.median(ratios) == pytest.approx(0.95, abs=0.03)


def test_privacy_bounds_and_deadlines_come_in_their_shares() -> None:
    found = jobs(load_workload("summarise"), 3, count=10_000)
    for privacy, share in ((Privacy.OPEN, 0.6), (Privacy.NO_PROMPT, 0.2), (Privacy.NO_TEXT, 0.2)):
        assert np.mean([job.privacy is privacy for job in found]) == pytest.approx(share, abs=0.02)
    assert np.mean([job.max_new_tokens == 128 for job in found]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([job.deadline_s is not None for job in found]) == pytest.approx(0.1, abs=0.01)
    assert {job.deadline_s for job in found} == {None, 10.0, 30.0}


def test_open_arrivals_follow_their_process() -> None:
    poisson, bursty, steady = (
        gaps_of(jobs(opened(process=process, burstiness=burstiness), 1, count=5000))
        for process, burstiness in ((Process.POISSON, 1.0), (Process.GAMMA, 0.25), (Process.CONSTANT, 1.0))
    )
    for gaps in (poisson, bursty, steady):
        assert gaps.mean() == pytest.approx(20.0, rel=0.06)
    assert poisson.std() / poisson.mean() == pytest.approx(1.0, abs=0.06)
    assert bursty.std() / bursty.mean() == pytest.approx(2.0, abs=0.15)
    assert steady.std() == pytest.approx(0.0, abs=1e-6)


def test_traced_arrivals_repeat_as_a_whole() -> None:
    traced = opened(process=Process.TRACE, trace_s=(1.0, 4.0, 10.0), conversations_per_s=0.0)
    assert [job.at_s for job in jobs(traced, 1, count=5)] == [1.0, 4.0, 10.0, 11.0, 14.0]


def test_a_user_of_a_closed_loop_asks_only_after_reading_and_thinking() -> None:
    (kind,) = load_workload("chat").kinds
    for a, b in pairwise(jobs(load_workload("chat"), 6, count=2000)):
        read_s = a.new_tokens * kind.read_s_per_token
        assert b.at_s - a.at_s >= read_s + 1.0 - 1e-6


def test_several_users_do_not_wait_for_each_other() -> None:
    crowd = replace(load_workload("chat"), users=8)
    found = jobs(crowd, 1, seconds=6 * HOUR_S)
    alone = jobs(replace(crowd, users=1), 1, seconds=6 * HOUR_S)
    assert len({job.conversation % 8 for job in found}) == 8
    assert len(found) == pytest.approx(8 * len(alone), rel=0.35)


def test_a_log_normal_stays_within_its_bounds() -> None:
    lengths = LogNormal(median=10.0, sigma=2.0, low=5.0, high=20.0)
    rng = np.random.default_rng(0)
    drawn = [lengths.draw(rng) for _ in range(500)]
    assert (min(drawn), max(drawn)) == (5.0, 20.0)
    assert np.median(drawn) == pytest.approx(10.0, rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "either the seconds or the count"),
        ({"seconds": 1.0, "count": 1}, "either the seconds or the count"),
        ({"count": 0}, "count = 0"),
        ({"seconds": -1.0}, "seconds"),
        ({"seconds": 1e12}, "seconds"),
    ],
)
def test_a_run_has_one_length(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        jobs(load_workload("chat"), 1, **arguments)  # type: ignore[arg-type]


def test_a_workload_too_slow_for_the_count_is_refused() -> None:
    with pytest.raises(InputError, match="do not arrive"):
        jobs(opened(conversations_per_s=1e-7), 1, count=1000)


TEXT = """
about = "a"
source = "b"
conversations_per_s = 0.1

[[kinds]]
genre = "chat"
prompt_tokens = { median = 30.0, sigma = 1.0, low = 1.0, high = 100.0 }
answer_tokens = { median = 30.0, sigma = 1.0, low = 1.0, high = 100.0 }
max_new_tokens = [64]
"""


def test_a_users_own_file_needs_only_what_has_no_default(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(TEXT, encoding="utf-8")
    assert {job.privacy for job in jobs(load_workload(str(path)), 1, count=20)} == {Privacy.OPEN}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("genre", "gener"), r"own\.toml\.kinds\[0\] has the unknown field 'gener'"),
        (("median = 30.0", "median = 300.0"), r"own\.toml\.kinds\[0\]\.prompt_tokens: a log-normal needs"),
        (("[64]", "[]"), r"own\.toml\.kinds\[0\]: max_new_tokens names"),
        (("[64]", "[9000]"), "no turn of genre 'chat' fits"),
        (("[64]", "[64]\nmean_turns = 3.0"), "states think_s"),
        (("[64]", "[64]\ndeadline_share = 0.5"), "deadline_share and deadline_s go together"),
        (("[64]", "[64]\nprivacy = [{ privacy = 'none', share = 1.0 }]"), r"privacy\[0\]\.privacy must be one of"),
        (("[64]", "[64]\nprivacy = []"), "at least one positive share"),
        (("answer_tokens", "answer_per_promt"), "unknown field 'answer_per_promt'"),
        (("conversations_per_s = 0.1", ""), "either users .* or conversations_per_s"),
        (("conversations_per_s = 0.1", "conversations_per_s = 0.1\nusers = 2"), "either users"),
        (("conversations_per_s = 0.1", "users = 2"), "pause_s goes with users"),
        (("conversations_per_s = 0.1", "process = 'trace'\nconversations_per_s = 0.1"), "trace_s goes with"),
        (("about", "about ="), "is not TOML"),
    ],
)
def test_a_malformed_workload_is_refused_by_name_and_key(change: tuple[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        WORKLOADS.parse(TEXT.replace(*change, 1), "own.toml")


def test_an_unknown_workload_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="no workload 'poetry'") as caught:
        load_workload("poetry")
    assert "summarise" in caught.value.hint
