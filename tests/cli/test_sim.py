"""``splitglm sim``: run, go on, compare, list; mistakes in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from cli_runs import COMMAND, Run, finish, one_line_error, start

from splitglm_cli.main import as_ours
from splitglm_core.errors import DeviceError
from splitglm_sims.study.load import STUDIES

STUDY = """
name = "mine"
seeds = [1]
requests = 3
workloads = ["chat"]
device = "demo-2core"
cloud = "cpu-2core"
privacy = ["open"]
[[links]]
name = "wifi-poor"
[[strategies]]
name = "fixed"
role = "judged"
options = { arm = "split" }
[[strategies]]
name = "device-only"
role = "side"
[[strategies]]
name = "cloud-only"
role = "side"
"""


@pytest.fixture
def study(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(STUDY)
    return str(path)


def test_a_study_is_run_gone_on_with_and_compared(splitglm: Run, study: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    first = splitglm("sim", "run", study, "--out", out, "--jobs", "1", "--quiet")
    assert first.code == 0, first.err
    assert first.out.startswith("3 worlds run: 9 requests in ") and f"splitglm sim compare {out}" in first.out
    again = splitglm("sim", "run", study, "--out", out, "--jobs", "1", "--json", "--quiet")
    assert again.document()["cells"] == 0 and again.document()["found"] == 3
    told = splitglm("sim", "compare", out, "--quiet")
    assert told.code == 0, told.err
    assert "goals met" in told.out and "cost over the better single side" in told.out
    assert (tmp_path / "out" / "report" / "report.html").is_file()


def test_compare_prints_the_tables_as_json_and_writes_only_where_it_is_told(
    splitglm: Run, study: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert splitglm("sim", "run", study, "--out", str(out), "--jobs", "1", "--quiet").code == 0
    [document] = splitglm("sim", "compare", str(out), "--json", "--quiet").document()["studies"]
    assert document["study"] == "mine" and {goal["goal"] for goal in document["goals"]}
    assert len(document["groups"]) == 1 and len(document["groups"][0]["strategies"]) == 3
    assert not (out / "report").exists()
    there = tmp_path / "there"
    assert splitglm("sim", "compare", str(out), "--json", "--out", str(there), "--quiet").code == 0
    assert (there / "report.md").is_file()


def test_everything_that_a_study_can_name_is_listed(splitglm: Run) -> None:
    outcome = splitglm("sim", "list", "--json")
    assert outcome.code == 0, outcome.err
    shelves = outcome.document()
    assert [row["name"] for row in shelves["studies"]] == list(STUDIES.names())
    names = {row["name"] for row in shelves["strategies"]}
    assert {"device-only", "cloud-only", "neurosurgeon", "exp3", "oracle"} <= names
    assert all(row["source"] for row in shelves["strategies"] + shelves["link classes"] + shelves["devices"])
    text = splitglm("sim", "list")
    assert text.code == 0 and all(name in text.out for name in names)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "nonsense"), "there is no study 'nonsense'"),
        (("run", "quick", "--seeds", "1,x"), "--seeds '1,x' is not a list"),
        (("run", "quick", "--seeds", "1,1"), "seeds names one twice"),
        (("run", "recorded"), "needs trace files"),
        (("run", "recorded", "--traces", "nowhere"), "no trace file"),
        (("compare", "nowhere"), "nowhere holds no study"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    splitglm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = splitglm("sim", *arguments)
    assert outcome.code == 64
    assert said in one_line_error(outcome)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_every_process_and_the_next_run_goes_on(study: str, tmp_path: Path, home: Path) -> None:
    """Interrupted once a world is finished: the others are not, and no worker stays behind."""
    out = tmp_path / "out"
    longer = Path(study).read_text().replace("requests = 3", "requests = 80").replace("[1]", "[1, 2, 3, 4]")
    Path(study).write_text(longer)
    process = start("sim", "run", study, "--out", str(out), "--jobs", "2", "--quiet", start_new_session=True)
    family = psutil.Process(process.pid)
    while not list(out.glob("cells/*.cell")):
        assert process.poll() is None
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    workers = family.children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    outcome = finish(process)
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "splitglm: interrupted\n")
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    finished = {path: path.stat().st_mtime_ns for path in out.glob("cells/*.cell")}
    assert 0 < len(finished) < 12
    again = finish(start("sim", "run", study, "--out", str(out), "--jobs", "2", "--quiet", "--json"))
    assert again.code == 0, again.err
    assert again.document()["found"] == len(finished) and again.document()["cells"] == 12 - len(finished)
    assert all(path.stat().st_mtime_ns == at for path, at in finished.items())


def test_the_help_needs_neither_simulator_nor_drawing() -> None:
    program = (
        "import sys, splitglm_cli.main as m; m.main(['sim', 'run', '--help']); print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "--traces" in result.stdout
    loaded = {name.partition(".")[0] for name in result.stderr.split()}
    assert not loaded & {"simpy", "matplotlib", "jinja2", "numpy", "splitglm_sims"}


@pytest.mark.parametrize("package", ["simpy", "matplotlib"])
def test_a_missing_package_names_the_extra_that_has_it(package: str) -> None:
    told = as_ours(ModuleNotFoundError("no", name=f"{package}.inner"))
    assert isinstance(told, DeviceError) and told.hint == "pip install 'splitglm[sims]'"


def test_without_the_simulator_a_run_says_what_to_install(study: str, tmp_path: Path) -> None:
    (tmp_path / "simpy.py").write_text("raise ModuleNotFoundError('no', name='simpy')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    words = [*COMMAND, "sim", "run", study, "--out", str(tmp_path / "out")]
    result = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 71 and "splitglm[sims]" in result.stderr and result.stderr.count("\n") == 1
    assert not json.dumps(result.stderr).count("Traceback")
