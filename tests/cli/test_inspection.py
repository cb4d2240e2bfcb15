"""``plan``, ``profile`` and ``doctor``: what is measured, what would be chosen, what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import LAYERS, Run, Served, one_line_error

from splitglm_cli.machine_facts import cpu_features
from splitglm_core.version import VERSION
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile

SIZE = ("--prompt-tokens", "100", "--new-tokens", "20")


def test_plan_explains_in_words_and_a_table(splitglm: Run, tiny: str, cloud: Served) -> None:
    outcome = splitglm("plan", tiny, *SIZE, *cloud.trusted, "--privacy", "open")
    assert outcome.code == 0 and "Chosen: " in outcome.out
    for arm in ("device", "cloud", "split", "ushape"):
        assert f"\n{arm}" in outcome.out


def test_plan_as_json_prices_every_allowed_arm_and_names_what_is_not(splitglm: Run, tiny: str, cloud: Served) -> None:
    plan = splitglm("plan", tiny, *SIZE, *cloud.trusted, "--json").document()
    allowed = [choice["plan"]["arm"] for choice in (plan["chosen"], *plan["runners_up"])]
    assert sorted(allowed) == ["device", "ushape"]
    assert sorted(entry["arm"] for entry in plan["excluded"]) == ["cloud", "split"]
    assert all(entry["constraint"] == "privacy" for entry in plan["excluded"])
    values = [choice["value"] for choice in (plan["chosen"], *plan["runners_up"])]
    assert values == sorted(values) and plan["link"]["rtt_s"] > 0


def test_plan_obeys_a_fixed_cut_and_a_deadline(splitglm: Run, tiny: str, cloud: Served) -> None:
    fixed = splitglm("plan", tiny, *SIZE, *cloud.trusted, "--split", "1:3", "--codec", "int8", "--json").document()
    plan = fixed["chosen"]["plan"]
    assert (plan["arm"], plan["s"], plan["t"], plan["codec"]) == ("ushape", 1, 3, "int8") and not fixed["runners_up"]
    late = splitglm("plan", tiny, *SIZE, "--deadline", "0.0000001")
    assert late.code == 78 and "deadline" in one_line_error(late)


def test_plan_refuses_more_than_the_model_holds(splitglm: Run, tiny: str) -> None:
    outcome = splitglm("plan", tiny, "--prompt-tokens", "100000")
    assert outcome.code == 65
    one_line_error(outcome)


def test_profile_measures_and_keeps_what_plans_use(splitglm: Run, tiny: str, cloud: Served) -> None:
    document = splitglm("profile", tiny, *cloud.trusted, "--json").document()
    stored = Path(document["stored"])
    device = DeviceProfile.from_json(stored.read_text())
    assert device == DeviceProfile.from_json(json.dumps(document["device"])) and device.layers == LAYERS
    assert CloudProfile.from_json(json.dumps(document["cloud"])).has_head
    assert document["link"]["uplink_bytes_per_s"] > 0
    first = stored.stat().st_mtime_ns
    words = splitglm("profile", tiny)
    assert "tok/s" in words.out and str(stored) in words.err
    assert stored.stat().st_mtime_ns > first, "measured again, not read back"


def test_doctor_reports_this_machine(splitglm: Run, tiny: str) -> None:
    report = splitglm("doctor", "--json").document()
    assert report["splitglm"] == VERSION and tiny in report["store"]["models"]
    assert "CPUExecutionProvider" in report["onnxruntime_providers"]
    assert report["memory"]["free_gb"] > 0 and report["processor"]["usable_cores"] >= 1
    assert isinstance(report["huge_pages"]["possible"], bool)
    words = splitglm("doctor").out
    assert all(name in words for name in ("packages", "processor", "memory", "store", "huge_pages"))


def test_doctor_says_what_serving_here_would_meet(
    splitglm: Run, tiny: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serving = splitglm("doctor", "--json").document()["serving"]
    assert serving["executor"] == "inline" and "GB free" in serving["kv_budget"]
    assert {"open_files", "shared_memory", "status_sockets", "accelerator", "traces"} <= set(serving)
    monkeypatch.setenv("SPLITGLM_CLOUD_KV_BUDGET_BYTES", "900TiB")
    monkeypatch.setenv("SPLITGLM_CLOUD_MAX_STREAMS", "100000000")
    tmp_path.chmod(0o755)
    monkeypatch.setenv("SPLITGLM_CLOUD_RUNTIME_DIR", str(tmp_path))
    serving = splitglm("doctor", "--json").document()["serving"]
    assert "more than" in serving["kv_budget"] and "SPLITGLM_CLOUD_KV_BUDGET_BYTES" in serving["settings"]
    assert "ulimit -n" in serving["open_files"] or serving["open_files"] == "no limit"
    assert "not this user's alone" in serving["status_sockets"]
    monkeypatch.setenv("SPLITGLM_CLOUD_MAX_STREAMS", "many")
    outcome = splitglm("doctor", "--json")
    assert outcome.code == 0 and "SPLITGLM_CLOUD_MAX_STREAMS" in outcome.document()["serving"]["settings"]


def test_doctor_meets_a_cloud(splitglm: Run, tiny: str, cloud: Served) -> None:
    met = splitglm("doctor", *cloud.trusted, "--model", tiny, "--json").document()["cloud"]
    assert met["layers"] == f"[0, {LAYERS})" and met["identity"] == "explicit" and met["rtt_ms"] > 0
    assert splitglm("doctor", *cloud.trusted, "--json").document()["cloud"]["model"] == tiny, "it finds the model"


def test_doctor_reports_everything_even_when_the_cloud_is_not_trusted(
    splitglm: Run, tiny: str, cloud: Served, tmp_path: Path, monkeypatch: object
) -> None:
    outcome = splitglm("doctor", "--cloud", cloud.address, "--json")
    assert outcome.code == 77
    report = outcome.document()
    assert "keys pin" in report["cloud"]["problem"] and report["splitglm"] == VERSION


def test_doctor_recognises_a_cloud_with_a_foreign_model(splitglm: Run, other: str, cloud: Served) -> None:
    outcome = splitglm("doctor", *cloud.trusted, "--model", other, "--json")
    assert outcome.code == 78 and "serves model" in outcome.document()["cloud"]["problem"]


def test_cpu_features_are_read_on_either_architecture(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor: 0\nflags\t\t: fpu avx2 avx512f amx_int8 unknown\n")
    assert cpu_features(file) == ["avx2", "avx512f", "amx_int8"]
    file.write_text("Features\t: fp asimd asimddp i8mm\n")
    assert cpu_features(file) == ["asimd", "asimddp", "i8mm"]
    assert cpu_features(tmp_path / "absent") == []
