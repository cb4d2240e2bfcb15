"""A study's cells are the same whoever runs them, whatever stops the run, and never mixed with others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import LINK, SMALL, contents, job, kill_this_process, made_up, record, refuse, small_study

from splitglm_core.errors import DeviceError, InputError
from splitglm_core.plan import Arm
from splitglm_sims.study.build import CROWD_LINKS, crowd_of, scene_of, simulate
from splitglm_sims.study.columns import ARMS, DTYPES, Columns, ColumnsBuilder, decode, encode
from splitglm_sims.study.config import LoadedStudy
from splitglm_sims.study.run import run_study
from splitglm_sims.study.store import STUDY_FILE, Cell, Results, cells


class Counting:
    """``made_up``, or whatever else, that counts its cells and stops after some."""

    def __init__(self, stop_after: int = 1000) -> None:
        self.ran: list[str] = []
        self._stop_after = stop_after

    def __call__(self, study: LoadedStudy, cell: Cell) -> Columns:
        if len(self.ran) == self._stop_after:
            raise KeyboardInterrupt
        self.ran.append(cell.key)
        return made_up(study, cell)


def test_worlds_are_the_same_byte_for_byte_however_many_processes_run_them(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    alone = run_study(study, tmp_path / "one", jobs=1)
    many = run_study(study, tmp_path / "two", jobs=2)
    assert alone == many and alone.cells == 12 and alone.requests == 72
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_every_strategy_meets_the_same_requests_and_the_same_link(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    by_world: dict[tuple[str, int], list[Columns]] = {}
    for cell in cells(study.config):
        by_world.setdefault((cell.link.name, cell.seed), []).append(simulate(study, cell))
    for same in by_world.values():
        for columns in same[1:]:
            for name in ("job", "at_s", "new_tokens"):
                assert (columns[name] == same[0][name]).all()
    starts = {tuple(same[0]["at_s"]) for same in by_world.values()}
    assert len(starts) == 2  # one user's day per seed


@pytest.mark.parametrize("stop_after", [0, 1, 5, 11])
def test_a_run_that_was_stopped_goes_on_with_what_is_missing(tmp_path: Path, stop_after: int) -> None:
    study = small_study(tmp_path)
    first, second = Counting(stop_after), Counting()
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "stopped", simulate=first)
    ran = run_study(study, tmp_path / "stopped", simulate=second)
    assert (ran.cells, ran.found) == (12 - stop_after, stop_after)
    assert sorted(first.ran + second.ran) == sorted(cell.key for cell in cells(study.config))
    run_study(study, tmp_path / "whole", simulate=made_up)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert run_study(study, tmp_path / "stopped", simulate=refuse).cells == 0


def test_a_cell_whose_writing_fails_leaves_nothing_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(tmp_path)
    results = Results.begin(tmp_path / "out", study)
    cell = next(results.cells())

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(Path, "replace", full)
        results.write(cell, made_up(study, cell))
    assert list((tmp_path / "out" / "cells").iterdir()) == []
    assert len(results.missing()) == 12


def test_a_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    run_study(small_study(tmp_path), tmp_path / "out", simulate=made_up)
    changed = small_study(tmp_path, SMALL.replace("requests = 6", "requests = 7"))
    with pytest.raises(InputError, match="another configuration") as told:
        run_study(changed, tmp_path / "out", simulate=made_up)
    assert "--out" in told.value.hint
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        run_study(changed, tmp_path / "full", simulate=made_up)


def test_cells_of_another_simulator_or_another_trace_are_not_gone_on_with(tmp_path: Path) -> None:
    text = SMALL.replace('name = "wifi-poor"', 'name = "own"\ndown = "own.down"\nup = "own.down"\nrtt_s = 0.05')
    (tmp_path / "own.down").write_text("1\n2\n3\n")
    study = small_study(tmp_path, text)
    run_study(study, tmp_path / "out", simulate=made_up)
    (tmp_path / "own.down").write_text("1\n2\n4\n")
    with pytest.raises(InputError, match="another set of files"):
        run_study(study, tmp_path / "out", simulate=made_up)
    (tmp_path / "own.down").write_text("1\n2\n3\n")
    path = tmp_path / "out" / STUDY_FILE
    document = json.loads(path.read_text())
    document["made_by"]["code"] = "0" * 12
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="another simulator"):
        run_study(study, tmp_path / "out", simulate=made_up)


def test_recorded_links_begin_at_a_place_of_their_own_for_each_seed(tmp_path: Path) -> None:
    text = SMALL.replace('name = "wifi-poor"', 'name = "own"\ndown = "own.down"\nup = "own.down"\nrtt_s = 0.05')
    (tmp_path / "own.down").write_text("\n".join(str(7 * i) for i in range(1, 500)))
    study = small_study(tmp_path, text)
    from splitglm_sims.study.build import link_of

    links = [link_of(study.config.links[1], study.folder, seed, 600.0) for seed in (1, 2, 1)]
    assert links[0] == links[2] and links[0].offset_s != links[1].offset_s
    assert replace(links[0], offset_s=0.0) == replace(links[1], offset_s=0.0)
    assert links[0].rtt_s == 0.05 and links[0].up == links[0].down


def test_a_worker_that_is_killed_is_told_as_a_fault_of_the_machine(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="was killed") as told:
        run_study(small_study(tmp_path), tmp_path / "out", jobs=2, simulate=kill_this_process)
    assert "--jobs" in told.value.hint


def test_a_world_that_cannot_be_is_named_across_processes(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    for jobs in (1, 2):
        with pytest.raises(InputError, match=r"lte-driving/chat/open/.*: no such world") as told:
            run_study(study, tmp_path / f"{jobs}", jobs=jobs, simulate=refuse)
        assert told.value.hint == "make another"


def test_records_become_columns_in_the_order_of_their_starts() -> None:
    asked = tuple(job(index) for index in range(3))
    builder = ColumnsBuilder()
    builder.add(
        [record(1, 2.0, 1.5, "device"), record(0, 1.0, None, "ushape", failed="the cloud was lost")], asked, LINK
    )
    builder.add([record(2, 4.0, 4.0, "cloud")], asked, LINK, device=7)
    columns = builder.build({"load": 0.5})
    assert columns["job"].tolist() == [0, 1, 2] and columns["device"].tolist() == [0, 0, 7]
    assert [ARMS[i] for i in columns["arm"]] == [Arm.USHAPE, Arm.DEVICE, Arm.CLOUD]
    assert columns["value"].tolist() == [1.0, 2.0, 4.0] and np.isnan(columns["best_value"][0])
    assert columns["up_bytes_per_s"] == pytest.approx([1e5] * 3) and columns["down_bytes_per_s"] == pytest.approx(
        [2e5] * 3
    )
    assert columns.per_token_s == pytest.approx([0.2, 0.4, 0.8])
    assert columns.answered.tolist() == [False, True, True] and columns.failures == ("the cloud was lost",)
    assert [columns.drafters[i] for i in columns["drafter"]] == ["lookup", "none", "none"]
    assert [columns.codecs[i] for i in columns["codec"]] == ["bf16", "none", "none"]


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.sampled_from(["device", "cloud", "ushape"])), max_size=20))
def test_columns_survive_their_file(rows: list[tuple[float, str]]) -> None:
    asked = tuple(job(index) for index in range(len(rows)))
    builder = ColumnsBuilder()
    builder.add((record(i, value, 1.0, arm) for i, (value, arm) in enumerate(rows)), asked, LINK)
    columns = builder.build({"load": 0.25})
    again = decode(encode(columns, "a key"), "a key", "a file")
    assert all((again[name] == columns[name]).all() or name == "deadline_s" for name in DTYPES)
    assert (again.drafters, again.failures, again.facts) == (columns.drafters, columns.failures, {"load": 0.25})
    assert encode(again, "a key") == encode(columns, "a key")


def test_a_cell_that_is_cut_short_damaged_or_anothers_is_refused(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    run_study(study, tmp_path / "out", simulate=made_up)
    results = Results.open(tmp_path / "out")
    cell, other = list(results.cells())[:2]
    whole = results.path(cell).read_bytes()
    line = whole.partition(b"\n")[0]
    for data in (
        whole[:-1],
        b"",
        b"{}",
        line.replace(b"cell 1", b"cell 9"),
        b"\xff\n",
        results.path(other).read_bytes(),
    ):
        results.path(cell).write_bytes(data)
        with pytest.raises(InputError):
            results.read(cell)
    results.path(cell).write_bytes(line.replace(b'"drafters":["lookup"]', b'"drafters":[]') + whole[len(line) :])
    with pytest.raises(InputError, match="drafter"):
        results.read(cell)
    header = json.loads(line)
    for change in (
        {"facts": {"a": "x"}},
        {"facts": {"a": None}},
        {"facts": {"a": [1]}},
        {"facts": 5},
        {"drafters": 5},
        {"failures": {"a": 1}},
        {"codecs": []},
    ):
        results.path(cell).write_bytes(json.dumps(header | change).encode() + whole[len(line) :])
        with pytest.raises(InputError, match="damaged"):
            results.read(cell)
    results.path(cell).write_bytes(whole)
    assert len(results.read(cell)) == 6
    results.path(cell).unlink()
    with pytest.raises(InputError, match="lacks the cell"):
        results.read(cell)


def test_a_crowd_shares_one_cloud_and_its_strategies_meet_the_same_requests(tmp_path: Path) -> None:
    text = SMALL.replace("requests = 6", "seconds = 150.0\ndevices = [3, 70]").replace(
        '[[links]]\nname = "wifi-poor"', ""
    )
    study = small_study(tmp_path, text.replace("[1, 2]", "[1]"))
    run_study(study, tmp_path / "out")
    results = Results.open(tmp_path / "out")
    by_size: dict[int, list[Columns]] = {}
    for cell in results.cells():
        by_size.setdefault(cell.devices, []).append(results.read(cell))
    for same in by_size.values():
        asked = [sorted(zip(c["device"].tolist(), c["job"].tolist(), c["at_s"].tolist(), strict=True)) for c in same]
        assert asked[0] == asked[1] == asked[2] and len({device for device, _, _ in asked[0]}) > 1
        assert [c.facts["cloud busy %"] > 0.0 for c in same] == [True, False, True]
    # More devices than links: those that share a link are at different places in it.
    crowd = crowd_of(study, next(cell for cell in results.cells() if cell.devices == 70))
    first, sharing = crowd.device(0).link, crowd.device(CROWD_LINKS).link
    assert first.up is sharing.up and first.offset_s != sharing.offset_s


def test_a_world_in_which_nobody_asks_anything_is_refused(tmp_path: Path) -> None:
    text = SMALL.replace("requests = 6", "seconds = 0.5")
    for world in (text, text.replace("seconds", "devices = [2]\nseconds")):
        with pytest.raises(InputError, match="nobody asks anything"):
            run_study(small_study(tmp_path, world), tmp_path / "out" / str(len(world)))


def test_drafters_of_a_study_reach_its_worlds(tmp_path: Path) -> None:
    text = SMALL.replace("requests", 'drafters = ["lookup", "cloud-mtp"]\nrequests')
    study = small_study(tmp_path, text)
    drafts = scene_of(study, next(cells(study.config))).drafts
    assert {one.name for one in drafts["chat"]} == {"lookup", "cloud-mtp"}
    wrong = small_study(tmp_path, text.replace('"lookup"', '"guess"'))
    with pytest.raises(InputError, match="no drafter 'guess'"):
        scene_of(wrong, next(cells(wrong.config)))
