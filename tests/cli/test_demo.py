"""``demo`` compares real runs: with a random model its texts differ as soon as its numerics do."""

from __future__ import annotations

import pytest
from cli_runs import Run, one_line_error
from glm_factory import write_tiny_checkpoint

from splitglm_cli import demo as demo_module
from splitglm_cli.demo_arms import demo_arms
from splitglm_core.plan import Arm, Codec

FLAGS = ("--prompt", "hello", "--max-tokens", "24")


def test_every_arm_runs_and_the_exact_ones_agree(splitglm: Run, tiny: str) -> None:
    outcome = splitglm("demo", "--model", tiny, *FLAGS, "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.document()
    arms = {(row["arm"], row["codec"]): row for row in document["arms"]}
    assert set(arms) == {("device", None), ("cloud", None)} | {
        (arm, codec) for arm in ("split", "ushape") for codec in ("fp32", "bf16", "int8")
    }
    reference = arms["device", None]["token_ids"]
    for row in arms.values():
        assert row["same_as_device"] == (row["token_ids"] == reference)
        assert row["token_ids"][: row["same_tokens"]] == reference[: row["same_tokens"]]
        assert row["same_as_device"] or not row["exact"]
    assert document["exact_arms_agree"] is True
    assert arms["device", None]["bytes_up"] == 0 < arms["cloud", None]["bytes_up"]
    assert arms["split", "fp32"]["bytes_up"] > arms["split", "bf16"]["bytes_up"] > arms["split", "int8"]["bytes_up"]
    assert arms["ushape", "fp32"]["bytes_down"] > arms["split", "fp32"]["bytes_down"]
    assert document["default"]["stats"]["why"].startswith("Chosen: ")


def test_people_get_a_table_and_what_is_encrypted(splitglm: Run, tiny: str) -> None:
    outcome = splitglm("demo", "--model", tiny, *FLAGS)
    assert outcome.code == 0
    for text in ("Pinned for this demo", "no-text", "device only", "cloud only", "U-shape", "TTFT", "same text?"):
        assert text in outcome.out
    assert "Encrypted: " in outcome.out and "Not hidden from the cloud: " in outcome.out


def test_an_exact_plan_with_another_answer_fails_the_demo(
    splitglm: Run, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = demo_module.run_arm

    def other_reference(agent, arm, prompt, max_tokens, reference):  # type: ignore[no-untyped-def]
        return honest(agent, arm, prompt, max_tokens, reference and (0, *reference[1:]))

    monkeypatch.setattr(demo_module, "run_arm", other_reference)
    outcome = splitglm("demo", "--model", tiny, *FLAGS, "--json")
    assert outcome.code == 70 and outcome.document()["exact_arms_agree"] is False
    assert "exact codec" in outcome.err


def test_a_model_with_too_few_layers_is_refused_before_anything_starts(
    splitglm: Run, home: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = write_tiny_checkpoint(tmp_path_factory.mktemp("source") / "short", layers=2)
    outcome = splitglm("demo", "--model", str(source))
    assert outcome.code == 64 and "too few" in one_line_error(outcome)


@pytest.mark.parametrize("layers", [4, 5, 7, 30, 61])
def test_the_arms_are_cuts_of_any_model(layers: int) -> None:
    arms = demo_arms(layers)
    assert arms[0].arm is Arm.DEVICE
    for arm in arms:
        assert 0 <= arm.s <= arm.t <= layers
        if arm.arm is Arm.USHAPE:
            assert 1 <= arm.s < arm.t < layers
        assert arm.exact == (arm.arm in (Arm.DEVICE, Arm.CLOUD) or arm.codec is Codec.FP32)
