"""Decisions on the command line: what is minimised, the log, and its replay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import Run, Served, one_line_error

from splitglm_cli.reply_options import parse_objective
from splitglm_core.errors import InputError
from splitglm_core.plan import Arm
from splitglm_partitioner.calibration import Calibration
from splitglm_partitioner.factors import ArmFactors
from splitglm_partitioner.request import Objective
from splitglm_wire.limits import MAX_ROWS

REPLY = ("--max-tokens", "6", "--ignore-eos", "--quiet")


@pytest.fixture
def log(splitglm: Run, tiny: str, cloud: Served, tmp_path: Path) -> Path:
    """Of three answers by three plans."""
    path = tmp_path / "decisions.jsonl"
    for more in ((), ("--split", "4"), ("--split", "1:3", "--codec", "int8", "--chunk", "16")):
        outcome = splitglm("run", tiny, "hello", *REPLY, *cloud.trusted, *more, "--decision-log", str(path))
        assert outcome.code == 0, outcome.err
    return path


def test_a_log_replays_to_the_same_decisions_and_tells_every_terms_error(splitglm: Run, log: Path) -> None:
    document = splitglm("replay", str(log), "--json").document()
    assert (document["decisions"], document["reproduced"], document["comparable"]) == (3, 3, 3)
    assert document["different"] == []
    assert document["terms"]["ttft_s"]["replies"] == 3 and document["terms"]["queue_s"]["replies"] >= 1
    assert all(term["measured"] >= 0.0 and term["error"] is not None for term in (document["terms"]["total_s"],))
    assert sum(of["ttft_s"]["replies"] for of in document["arms"].values()) == 3
    assert all(of["ttft_s"]["bias"] is not None for of in document["arms"].values())
    words = splitglm("replay", str(log))
    assert words.code == 0 and words.out.startswith("3 of 3 decisions come out the same")
    assert "\nttft " in words.out and "\nback " in words.out


@pytest.mark.parametrize("change", ["plan", "value", "inputs", "version"])
def test_a_decision_that_does_not_come_out_the_same_fails_the_replay(splitglm: Run, log: Path, change: str) -> None:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    decision = lines[1]["decision"]
    if change == "plan":
        decision["plan"]["s"] = 3
    elif change == "value":
        decision["value"] *= 1.5
    elif change == "inputs":
        decision["inputs"]["request"]["prompt_tokens"] += 1
    else:
        decision["version"] += 1
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = splitglm("replay", str(log))
    assert outcome.code == 64 and "1 of 3 decisions do not come out the same" in outcome.err
    assert "2 of 3 decisions come out the same" in outcome.out and "decision 2: " in outcome.out
    assert len(splitglm("replay", str(log), "--json").document()["different"]) == 1


def test_a_value_that_another_processor_rounds_otherwise_comes_out_the_same(splitglm: Run, log: Path) -> None:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        line["decision"]["value"] *= 1.0 + 1e-14
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    document = splitglm("replay", str(log), "--json").document()
    assert (document["decisions"], document["reproduced"], document["different"]) == (3, 3, [])


@pytest.mark.parametrize("change", [{"value": "much"}, {"value": None}, {"why": 3}, {"why": "arm=device"}])
def test_a_reason_that_is_another_one_fails_the_replay(splitglm: Run, log: Path, change: dict[str, object]) -> None:
    line = json.loads(log.read_text().splitlines()[0])
    line["decision"] |= change
    log.write_text(json.dumps(line) + "\n")
    outcome = splitglm("replay", str(log))
    assert outcome.code == 64 and "for another reason" in outcome.out


def test_a_file_without_decisions_is_refused(splitglm: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for path in (empty, tmp_path / "absent", tmp_path):
        outcome = splitglm("replay", str(path))
        assert outcome.code == 64 and "decision" in one_line_error(outcome)


def test_a_log_that_cannot_be_written_is_told_before_anything_runs(splitglm: Run, tiny: str, tmp_path: Path) -> None:
    outcome = splitglm("run", tiny, "hello", *REPLY, "--decision-log", str(tmp_path / "absent" / "log"))
    assert outcome.code == 71 and "decision log" in one_line_error(outcome) and outcome.out == ""


def test_weights_are_those_named_and_no_others() -> None:
    assert parse_objective("latency=1, ttft=0.5,cloud_cost=2") == Objective(latency=1, ttft=0.5, cloud_cost=2)
    assert parse_objective("ttft=1") == Objective(latency=0.0, ttft=1.0)


@pytest.mark.parametrize(
    "text", ["", "latency", "latency=", "speed=1", "latency=1,latency=2", "ttft=-1", "ttft=nan", "latency=0", "ttft=1,"]
)
def test_an_objective_that_cannot_be_is_refused_in_one_line(splitglm: Run, tiny: str, text: str) -> None:
    with pytest.raises(InputError):
        parse_objective(text)
    outcome = splitglm("plan", tiny, "--objective", text)
    assert outcome.code == 64
    one_line_error(outcome)


def test_energy_is_weighed_once_a_power_is_stated(splitglm: Run, tiny: str) -> None:
    size = ("--prompt-tokens", "50", "--new-tokens", "20", "--precision", "fp32", "--json")
    energy = ("--objective", "latency=1,energy=0.5")
    for asked in (energy, ("--energy-budget", "10")):
        refused = splitglm("plan", tiny, *size, *asked)
        assert refused.code == 64 and "splitglm profile MODEL --compute-watts" in one_line_error(refused)
    refused = splitglm("run", tiny, "hello", *REPLY, "--energy-budget", "10")
    assert refused.code == 64 and "--radio-watts" in one_line_error(refused)
    part = splitglm("profile", tiny, "--precision", "fp32", "--compute-watts", "4")
    assert part.code == 64 and "--radio-watts" in one_line_error(part)
    whole = (
        "--compute-watts",
        "4",
        "--radio-watts",
        "1",
        "--uplink-joules-per-mb",
        "2",
        "--downlink-joules-per-mb",
        "1",
    )
    stated = splitglm("profile", tiny, "--precision", "fp32", *whole, "--json").document()["device"]["power"]
    assert stated == {"compute_w": 4.0, "radio_w": 1.0, "uplink_j_per_byte": 2e-6, "downlink_j_per_byte": 1e-6}
    plan = splitglm("plan", tiny, *size, *energy).document()["chosen"]
    assert plan["energy_j"] > 0.0 and plan["value"] == pytest.approx(plan["total_s"] + 0.5 * plan["energy_j"])
    allowed = splitglm("plan", tiny, *size, "--energy-budget", repr(1.5 * plan["energy_j"])).document()
    assert allowed["chosen"]["energy_j"] == pytest.approx(plan["energy_j"])
    beyond = splitglm("plan", tiny, *size, "--energy-budget", repr(0.5 * plan["energy_j"]))
    assert beyond.code == 78 and "budget" in one_line_error(beyond)
    answer = splitglm("run", tiny, "hello", *REPLY, "--precision", "fp32", "--energy-budget", "1e6")
    assert answer.code == 0 and answer.out
    again = splitglm("profile", tiny, "--precision", "fp32", "--compute-watts", "5", "--json").document()["device"]
    assert again["power"] == stated | {"compute_w": 5.0}, "what was stated before stays"


def test_power_is_measured_or_it_is_said_why_not(splitglm: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from splitglm_edge import rapl

    monkeypatch.setattr(rapl.EnergyCounters, "__init__", lambda self: (_ for _ in ()).throw(_no_counters()))
    flags = ("--measure-power", "--radio-watts", "0", "--uplink-joules-per-mb", "0", "--downlink-joules-per-mb", "0")
    outcome = splitglm("profile", tiny, *flags)
    assert outcome.code == 71 and "RAPL" in one_line_error(outcome) and "--compute-watts" in one_line_error(outcome)
    both = splitglm("profile", tiny, *flags, "--compute-watts", "1")
    assert both.code == 64 and "both" in one_line_error(both)


def _no_counters() -> Exception:
    from splitglm_core.errors import DeviceError

    return DeviceError("this machine offers no energy counters (RAPL)", "state it: --compute-watts")


def test_the_policy_chooses_the_chunk_unless_it_is_given(splitglm: Run, tiny: str) -> None:
    size = ("--prompt-tokens", "300", "--new-tokens", "20", "--json")
    free = splitglm("plan", tiny, *size).document()
    assert free["request"]["chunks"] == [32, 64, 256] and free["chosen"]["plan"]["chunk_tokens"] in (32, 64, 128, 256)
    given = splitglm("plan", tiny, *size, "--chunk", "48").document()
    assert given["request"]["chunks"] == [] and given["chosen"]["plan"]["chunk_tokens"] == 48


def test_a_plan_is_for_the_chunks_that_a_run_would_send(splitglm: Run, tiny: str) -> None:
    large = splitglm("plan", tiny, "--prompt-tokens", "300", "--chunk", "9000", "--json").document()
    assert large["chosen"]["plan"]["chunk_tokens"] == MAX_ROWS
    outcome = splitglm("plan", tiny, "--prompt-tokens", "200000")
    assert outcome.code == 65 and "positions" in one_line_error(outcome), "not how such a prompt would be cut"


def test_plan_shows_what_it_was_decided_on(splitglm: Run, tiny: str, cloud: Served) -> None:
    words = splitglm("plan", tiny, "--prompt-tokens", "100", "--new-tokens", "20", *cloud.trusted).out
    for word in (
        "\nterm ",
        "\nlink ",
        "deviation",
        "within",
        "\ncloud ",
        "in the queue",
        "\ndevice ",
        "\nsensors ",
        "\nsteering ",
    ):
        assert word in words, word


def test_plan_shows_what_replies_taught_it(splitglm: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = ("--prompt-tokens", "100", "--new-tokens", "20")
    assert "\nlearnt " not in splitglm("plan", tiny, *size).out
    learnt = (ArmFactors(arm=Arm.DEVICE, ttft=1.5, per_token=0.75),)
    monkeypatch.setattr(Calibration, "learnt", lambda self, *at_s: learnt)
    words = splitglm("plan", tiny, *size).out
    assert "\nlearnt " in words and "device: TTFT 1.50 times the model's, further tokens 0.75 times" in words
    document = splitglm("plan", tiny, *size, "--json").document()
    assert document["factors"] == [{"arm": "device", "ttft": 1.5, "per_token": 0.75}]
