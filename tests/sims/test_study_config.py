"""Studies are read strictly: what is misspelt, missing or contradictory is named with file and field."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from splitglm_core.errors import InputError
from splitglm_core.plan import Privacy
from splitglm_sims.links.fitted import Use, class_names
from splitglm_sims.presets.machines import cloud_preset, device_preset
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.registry import make_strategy, strategy_names
from splitglm_sims.study.build import drafts_of, jobs_of
from splitglm_sims.study.config import Compare, Role, StudyConfig, parse_study, study_of
from splitglm_sims.study.load import STUDIES, load_study
from splitglm_sims.study.store import cells, plain_config, provenance
from splitglm_sims.workloads.workload import load_workload

HEAD = """
name = "small"
seeds = [1, 2]
requests = 5
device = "demo-2core"
cloud = "cpu-2core"
workloads = ["chat"]
"""
LINKS = """
[[links]]
name = "lte-driving"
"""
STRATEGIES = """
[[strategies]]
name = "device-only"
role = "side"
[[strategies]]
name = "fixed"
label = "low split"
role = "fixed"
options = { cut = "low", tail_layers = 2, arm = "split" }
"""
SMALL = HEAD + LINKS + STRATEGIES
RECORDED = """
[[links]]
name = "own"
down = "own.down"
up_per_down = 0.5
because = "as measured once"
rtt_s = 0.05
"""


def test_a_study_says_what_runs_and_what_it_leaves_out_has_defaults() -> None:
    study = parse_study(SMALL, "small.toml")
    assert [strategy.label for strategy in study.strategies] == ["device-only", "low split"]
    assert study.strategies[1].role is Role.FIXED
    assert study.strategies[1].options == (("arm", "split"), ("cut", "low"), ("tail_layers", 2))
    assert (
        study.privacy == () and study.devices == () and study.compare is Compare.NONE and study.objective.latency == 1.0
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "small.toml is not TOML"),
        (SMALL + "colour = 'red'", "small.toml.strategies[1] has the unknown field 'colour'"),
        (SMALL.replace("seeds", "seed"), "small.toml has the unknown field 'seed'"),
        (SMALL.replace("requests = 5", ""), "exactly one of requests and seconds"),
        (SMALL.replace("requests = 5", "requests = 'five'"), "small.toml.requests must be a whole number"),
        (SMALL.replace("[1, 2]", "[1, 1]"), "seeds names one twice"),
        (SMALL.replace("[1, 2]", "[]"), "small.toml: a study has 1 to"),
        (SMALL.replace("low split", "device-only"), "strategies names one twice"),
        (SMALL.replace('"side"', '"boss"'), "small.toml.strategies[0].role must be one of judged, side"),
        (SMALL.replace('cut = "low"', "cut = [1]"), "small.toml.strategies[1].options.cut must be a number"),
        (SMALL.replace("{ cut", "7 #"), "small.toml.strategies[1].options must be a table"),
        (HEAD + STRATEGIES, "small.toml lacks the field 'links'"),
        (SMALL.replace("requests", "devices = [4]\nrequests"), "a crowd's length is given in seconds"),
        (
            HEAD + RECORDED.replace("rtt_s", "# was") + STRATEGIES,
            "small.toml.links[0]: rtt_s is given where round trips are stated",
        ),
        (HEAD + RECORDED.replace("because", "# was") + STRATEGIES, "because goes with up_per_down"),
        (HEAD + RECORDED.replace("\ndown =", "\n# was") + STRATEGIES, "states more than its name but no trace files"),
        (SMALL + "[objective]\nlatency = -1.0", "small.toml.objective: objective weight latency"),
        (SMALL + "[conditions]\ncloud_jitter = 3", "small.toml.conditions: cloud_jitter must lie in [0, 2]"),
    ],
)
def test_a_mistake_is_named_with_file_and_field(text: str, said: str) -> None:
    with pytest.raises(InputError) as told:
        parse_study(text, "small.toml")
    assert said in told.value.what


def test_what_is_written_down_is_read_back_the_same() -> None:
    for name in STUDIES.names():
        study = STUDIES.load(name)
        again = study_of(plain_config(study), name)
        assert again == study and again.digest == study.digest


def test_any_change_of_a_study_changes_its_digest() -> None:
    study = parse_study(SMALL, "small.toml")
    changed = [
        SMALL.replace("requests = 5", "requests = 6"),
        SMALL.replace('cut = "low"', 'cut = "high"'),
        SMALL.replace("tail_layers = 2", "tail_layers = 3"),
        SMALL.replace("[1, 2]", "[2, 1]"),
        SMALL.replace("lte-driving", "wifi-poor"),
    ]
    digests = {study.digest, *(parse_study(text, "small.toml").digest for text in changed)}
    assert len(digests) == len(changed) + 1


def test_a_strategy_runs_only_under_the_privacy_that_it_names() -> None:
    text = SMALL.replace("requests", 'privacy = ["open", "no-text"]\nrequests')
    text = text.replace('label = "low split"', 'label = "low split"\nprivacy = ["open"]')
    found = [(cell.strategy.label, cell.privacy) for cell in cells(parse_study(text, "small.toml")) if cell.seed == 1]
    assert found == [
        ("device-only", Privacy.OPEN),
        ("low split", Privacy.OPEN),
        ("device-only", Privacy.NO_TEXT),
    ]


def test_a_shipped_class_is_used_as_it_says_itself(tmp_path: Path) -> None:
    tuning = class_names(Use.TUNE)[0]
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace("lte-driving", tuning))
    assert load_study(str(path)).config.links[0].use is Use.TUNE
    path.write_text(SMALL.replace('name = "lte-driving"', f'name = "{tuning}"\nuse = "report"'))
    with pytest.raises(InputError, match="is for tuning"):
        load_study(str(path))


def test_trace_files_lie_beside_the_study_or_where_they_are_said_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    path = tmp_path / "small.toml"
    path.write_text(HEAD + RECORDED + STRATEGIES)
    with pytest.raises(InputError, match=r"no trace file own\.down") as told:
        load_study(str(path))
    assert "--traces" in told.value.hint
    (tmp_path / "there" / "own.down").write_text("1\n2\n")
    loaded = load_study(str(path), traces=tmp_path / "there")
    assert loaded.folder == tmp_path / "there" and loaded.config.links[0].use is Use.REPORT


def test_an_unknown_study_is_told_which_there_are() -> None:
    with pytest.raises(InputError, match="no study 'nonsense'") as told:
        load_study("nonsense")
    assert all(name in told.value.hint for name in STUDIES.names())


def test_other_seeds_make_another_study(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    own, other = load_study(str(path)), load_study(str(path), seeds=(9,))
    assert other.config.seeds == (9,) and own.config.digest != other.config.digest
    assert isinstance(own.config, StudyConfig)


@pytest.mark.parametrize("name", STUDIES.names())
def test_what_a_shipped_study_names_exists(name: str) -> None:
    study = STUDIES.load(name)
    device = device_preset(study.device)
    cloud = cloud_preset(study.cloud).profile(device.model)
    drafts_of(study.drafters, study.device, study.cloud)
    for workload in study.workloads:
        load_workload(workload)
    situation_facts = Facts(model=device.shape, device=device.profile(), cloud=cloud)
    for entry in study.strategies:
        made = make_strategy(entry.name, situation_facts=situation_facts, seed=1, options=dict(entry.options))
        assert not (made.clairvoyant and entry.role is not Role.RIVAL)
    for link in study.links:
        assert link.generated == (link.name in class_names())
    judged = [entry.name for entry in study.strategies if entry.role is Role.JUDGED]
    assert study.name == name and study.about and judged == ["splitglm"]


def test_every_fixed_arm_takes_part_where_privacy_allows_it(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    text = HEAD + 'fixed_arms = true\nprivacy = ["open", "no-text"]\n' + LINKS + STRATEGIES
    path.write_text(text)
    config = load_study(str(path)).config
    added = {entry.label: entry for entry in config.strategies[2:]}
    assert len(added) >= 5 and all(entry.role is Role.FIXED and entry.name == "fixed" for entry in added.values())
    assert "device" not in added, "the side of that name takes part already"
    assert added["cloud"].privacy == (Privacy.OPEN,)
    assert any(entry.privacy == (Privacy.OPEN, Privacy.NO_TEXT) for entry in added.values())
    assert study_of(plain_config(config), "again") == config


def test_fixed_arms_are_those_of_all_requests_and_not_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    text = HEAD.replace('"chat"', '"edit", "mixed"') + "fixed_arms = true\n" + LINKS + STRATEGIES
    path.write_text(text)
    study = load_study(str(path))
    arms = {dict(entry.options)["arm"] for entry in study.config.strategies[2:]}
    asked = [job for cell in cells(study.config) for job in jobs_of(study.config, cell, cell.seed)]
    assert {Privacy.OPEN, Privacy.NO_TEXT} <= {job.privacy for job in asked}
    assert {job.privacy for job in jobs_of(study.config, next(cells(study.config)), 1)[:1]} != {Privacy.OPEN}
    assert arms == {"cloud", "split", "ushape"}


def test_the_study_of_the_documents_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text(encoding="utf-8")
    [text] = [block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "[[links]]" in block]
    study = parse_study(text, "docs/simulation.md")
    assert {entry.name for entry in study.strategies} <= set(strategy_names())
    assert device_preset(study.device) and cloud_preset(study.cloud)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("demo-2core", "abacus", "no device 'abacus'"),
        ("cpu-2core", "fog", "no cloud 'fog'"),
        ('["chat"]', '["gossip"]', "no workload 'gossip'"),
        ("lte-driving", "string", "no link class 'string'"),
        ('"device-only"', '"luck"', "no strategy 'luck'"),
        ("tail_layers", "tails", "has no option tails"),
        ("requests = 5", 'seconds = 5.0\ndevices = [2]\nprivacy = ["open"]', "no place in a crowd"),
    ],
)
def test_what_does_not_exist_is_told_before_anything_runs(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "small.toml"
    text = SMALL + ('[[strategies]]\nname = "oracle"\n' if "crowd" in said else "")
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=re.escape(said)):
        load_study(str(path))


def test_a_strategy_of_ones_own_is_part_of_what_cells_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = "from splitglm_sims.strategies.fixed import device_only as mine\n"
    (tmp_path / "strategy_of_this_test.py").write_text(source)
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace('"device-only"', '"strategy_of_this_test:mine"'))
    study = load_study(str(path))
    before = provenance(study)
    assert provenance(study) == before
    (tmp_path / "strategy_of_this_test.py").write_text(source + "# another one\n")
    assert provenance(study).code != before.code


def test_presets_of_ones_own_are_part_of_what_cells_depend_on(tmp_path: Path) -> None:
    shipped = resources.files("splitglm_sims.presets").joinpath("devices", "demo-2core.toml").read_text("utf-8")
    own, path = tmp_path / "own.toml", tmp_path / "small.toml"
    own.write_text(shipped)
    path.write_text(SMALL.replace('"demo-2core"', f'"{own.as_posix()}"'))
    study = load_study(str(path))
    before = provenance(study)
    assert [file.path for file in before.files] == [own.as_posix()]
    own.write_text(shipped + "# changed\n")
    assert provenance(study).files != before.files
