"""Settings come from flags, environment and file, in that order, and every mistake says where it was made."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from splitglm_cli.main import main
from splitglm_cloud.engine.boarding import SweepLimits
from splitglm_cloud.settings import CloudSettings
from splitglm_cloud.settings_sources import MAX_FILE_BYTES, resolve
from splitglm_cloud.settings_spec import Known, known_settings, size_text
from splitglm_core.errors import DeviceError, InputError
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_security.keys import PairingCode

ROOT = Path(__file__).parents[2]
KNOWN = known_settings(CloudSettings)
SAMPLE: dict[str, tuple[str, Any]] = {
    "model": ("tiny", "tiny"),
    "listen": ("127.0.0.1:9", "127.0.0.1:9"),
    "precision": ("int4", Precision.INT4),
    "layers": ("1:3", LayerRange(1, 3)),
    "kv_high_watermark": ("0.95", 0.95),
    "otlp_endpoint": ("http://127.0.0.1:4318", "http://127.0.0.1:4318"),
}


@pytest.fixture
def pairing(tmp_path: Path) -> tuple[Path, bytes]:
    code = PairingCode.generate()
    path = tmp_path / "pairing.key"
    path.write_text(code.text)
    path.chmod(0o600)
    return path, code.psk()


def sample(known: Known, pairing: tuple[Path, bytes]) -> tuple[str, Any]:
    """A text that is not the default, and its value."""
    if known.name in SAMPLE:
        return SAMPLE[known.name]
    if known.kind == "pairing":
        return str(pairing[0]), pairing[1]
    if known.name == "tenants_file":
        file = pairing[0].with_name("tenants.toml")
        file.touch(0o600)
        file.write_text(f"[[tenant]]\nname = 'lab'\npsk_file = '{pairing[0].name}'\n")
        return str(file), file
    if known.setting.choices:
        value = next(choice for choice in known.setting.choices if choice != known.default)
        return value, value
    texts = {
        "switch": ("false", False) if known.default is True else ("true", True),
        "number": ("33", 33), "size": ("3MiB", 3 << 20), "real": ("0.5", 0.5), "path": ("/x/y", Path("/x/y")),
    }  # fmt: skip
    return texts[known.kind]


def test_every_field_is_a_setting_with_help() -> None:
    assert list(KNOWN) == [item.name for item in dataclasses.fields(CloudSettings)]
    assert all(known.setting.help.endswith(".") for known in KNOWN.values())
    assert len({known.flag for known in KNOWN.values()}) == len(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_every_setting_is_reachable_by_file_variable_and_flag(
    name: str, tmp_path: Path, pairing: tuple[Path, bytes], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    known = KNOWN[name]
    text, value = sample(known, pairing)
    file = tmp_path / "cloud.toml"
    in_toml = text if known.kind in ("switch", "number", "real") else json.dumps(text)
    file.write_text(f"{known.key} = {in_toml}\n")
    for found, kind in (
        (resolve(flags={}, environment={}, file=file), "file"),
        (resolve(flags={}, environment={known.variable: text}), "env"),
        (resolve(flags={name: value if known.kind == "switch" else text}, environment={}), "flag"),
    ):
        assert found.values == {name: value} and found.origins[name].kind == kind

    for variable in [item.setting.also_env for item in KNOWN.values() if item.setting.also_env]:
        monkeypatch.delenv(variable, raising=False)
    on_the_line = [text] if name == "model" else [known.flag, text]
    if known.kind == "switch":
        on_the_line = [known.flag if value else "--no-" + known.flag.removeprefix("--")]
    rest = ["--executor", "process"] if name == "workers" else []
    assert main(["cloud", "config", "--json", *on_the_line, *rest]) == 0
    shown = {line["key"]: line for line in json.loads(capsys.readouterr().out)["settings"]}
    assert shown[known.key] == {"key": known.key, "value": known.shown(value), "origin": "flag", "where": (
        "MODEL" if name == "model" else known.flag)}  # fmt: skip


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text("max_streams = 1\nmax_sessions = 1\nthreads = 1\nworkers = 1\n")
    environment = {"SPLITGLM_CLOUD_MAX_STREAMS": "2", "SPLITGLM_CLOUD_MAX_SESSIONS": "2", "SPLITGLM_THREADS": "2",
                   "SPLITGLM_CLOUD_CONFIG": str(file)}  # fmt: skip
    found = resolve(flags={"max_streams": "3", "model": "m"}, environment=environment)
    settings = found.settings()
    assert (settings.max_streams, settings.max_sessions, settings.threads, settings.workers) == (3, 2, 2, 1)
    assert settings.max_context == 0
    said = {known.name: str(origin) for known, _, origin in found.lines()}
    assert said["max_streams"] == "flag --max-streams" and said["threads"] == "env SPLITGLM_THREADS"
    assert said["workers"] == f"file {file}" and said["max_context"] == "default"


def test_a_setting_of_the_cloud_wins_over_the_variable_that_other_verbs_share() -> None:
    environment = {"SPLITGLM_THREADS": "2", "SPLITGLM_CLOUD_THREADS": "3"}
    assert resolve(flags={}, environment=environment).values["threads"] == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_sesions = 3", "did you mean max_sessions"),
        ("zzz = 3", "splitglm cloud config"),
        ('max_sessions = "3"', "max_sessions in"),
        ("max_sessions = 3.5", "a whole number"),
        ("max_sessions = true", "a whole number"),
        ("max_sessions = 0", "at least 1"),
        ("drain_grace_s = nan", "finite"),
        ("watchdog_s = 0", "more than 0"),
        ("kv_high_watermark = 1.5", "at most 1"),
        ('kv_budget_bytes = "4 apples"', "4GiB"),
        ("reflection = 1", "true or false"),
        ("model = 3", "a text"),
        ('runner = "jax"', "onnx"),
        ("layers = [1, 2]", "10:30"),
        ("a = ", "not TOML"),
        ("a = " + "[" * 30_000, "nested"),
        ('key_file = "a\\u0000b"', "a path"),
        ("[cloud]\nlisten = 'x'", "unknown key 'cloud'"),
    ],
)
def test_a_mistake_in_the_file_names_key_and_file(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text(line)
    with pytest.raises(InputError) as error:
        resolve(flags={}, environment={}, file=file)
    assert said in error.value.one_line() and str(file) in error.value.one_line()


def test_a_mistake_in_a_variable_or_a_flag_names_it() -> None:
    with pytest.raises(InputError, match=r"SPLITGLM_CLOUD_MAX_STREAMS: 'x' is not a whole number"):
        resolve(flags={}, environment={"SPLITGLM_CLOUD_MAX_STREAMS": "x"})
    with pytest.raises(InputError, match="--drain-grace"):
        resolve(flags={"drain_grace_s": "-1"}, environment={})
    with pytest.raises(InputError) as error:
        resolve(flags={}, environment={"SPLITGLM_CLOUD_MAX_STEAMS": "3"})
    assert "SPLITGLM_CLOUD_MAX_STREAMS" in error.value.hint
    resolve(flags={}, environment={"SPLITGLM_CLOUD_KEY": "of the device's half", "SPLITGLM_CLOUD": "host:1"})


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot read"):
        resolve(flags={}, environment={}, file=tmp_path / "none.toml")
    (tmp_path / "big.toml").write_text("#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(InputError, match="larger"):
        resolve(flags={}, environment={}, file=tmp_path / "big.toml")


@pytest.mark.parametrize(
    "bad",
    [
        {"kv_admit_watermark": 0.95}, {"executor": "inline", "workers": 2}, {"otlp_endpoint": "collector:4318"},
        {"executor": "ray"}, {"torch_dtype": "float8"}, {"sweep_rows": 31}, {"metrics_port": 65536},
        {"prefill_rows_beside_decode": 15}, {"otlp_endpoint": "http://name:word@collector:4318"},
        {"otlp_endpoint": "http://collector:99999"}, {"otlp_endpoint": "http://[::1"},
        {"max_queue_s": float("inf")},
    ],
)  # fmt: skip
def test_values_that_do_not_go_together_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        CloudSettings(model="m", **bad)


def test_a_secret_is_never_shown(pairing: tuple[Path, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    path, psk = pairing
    for form in ([], ["--json"]):
        assert main(["cloud", "config", "m", "--psk-file", str(path), *form]) == 0
        text = capsys.readouterr().out
        assert "(set)" in text and psk.hex() not in text and path.read_text() not in text


def test_a_secret_in_the_wrong_place_is_not_repeated(
    tmp_path: Path, pairing: tuple[Path, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    code = pairing[0].read_text().strip()
    file = tmp_path / "cloud.toml"
    for text in (f"psk_file = '{code}'", f"[psk_file]\ncode = '{code}'", f"psk_file = ['{code}']"):
        file.write_text(text)
        assert main(["cloud", "config", "m", "--config", str(file)]) == 64
        said = capsys.readouterr().err
        assert "psk_file" in said and code not in said
    assert main(["cloud", "config", "m", "--psk-file", code]) == 64
    assert code not in capsys.readouterr().err
    assert pairing[1].hex() not in repr(CloudSettings(model="m", psk=pairing[1]))
    assert repr(pairing[1]) not in repr(CloudSettings(model="m", psk=pairing[1]))


def test_a_tenants_file_that_serve_would_refuse_is_refused_by_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cloud", "config", "m", "--tenants-file", str(tmp_path / "none.toml")]) == 71
    (tmp_path / "tenants.toml").write_text("[[tenant]]\nname = 'lab'\n")
    (tmp_path / "tenants.toml").chmod(0o600)
    assert main(["cloud", "config", "m", "--tenants-file", str(tmp_path / "tenants.toml")]) == 64
    assert "lab" in capsys.readouterr().err


def test_the_least_rows_of_a_sweep_are_those_that_the_engine_can_do() -> None:
    least = {name: KNOWN[name].setting.least for name in ("sweep_rows", "prefill_rows_beside_decode")}
    rows, beside = int(least["sweep_rows"] or 0), int(least["prefill_rows_beside_decode"] or 0)
    SweepLimits(max_rows=rows, prefill_rows_beside_decode=beside)
    with pytest.raises(InputError):
        SweepLimits(max_rows=rows - 1, prefill_rows_beside_decode=beside)
    with pytest.raises(InputError):
        SweepLimits(max_rows=rows, prefill_rows_beside_decode=beside - 1)


def test_numbers_without_end_are_refused_in_one_line() -> None:
    for name, text in (("layers", "0:" + "9" * 5000), ("threads", "9" * 5000), ("kv_budget_bytes", "9" * 5000)):
        with pytest.raises(InputError):
            KNOWN[name].from_text(text)
    with pytest.raises(InputError):
        CloudSettings(model="m", listen="127.0.0.1:" + "9" * 5000)


@pytest.mark.parametrize("flag", ["--key-file", "--psk-file", "--tenants-file", "--config"])
def test_the_home_of_nobody_is_one_clear_line(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cloud", "config", "m", flag, "~nobody-has-this-name/file"]) == 64
    said = capsys.readouterr().err
    assert "~" in said and "internal" not in said and len(said.splitlines()) == 1


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "cloud.toml").write_text('key_file = "node.key"\ntenants_file = "/etc/tenants.toml"\n')
    values = resolve(flags={}, environment={}, file=tmp_path / "cloud.toml").values
    assert values == {"key_file": tmp_path / "node.key", "tenants_file": Path("/etc/tenants.toml")}


@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 10, 3 << 20, 4 << 30, (1 << 30) + 1])
def test_a_size_is_shown_so_that_it_can_be_read_back(size: int) -> None:
    assert KNOWN["rebuild_log_bytes"].from_text(size_text(size)) == size


def test_the_example_of_deploy_loads(tmp_path: Path, pairing: tuple[Path, bytes]) -> None:
    text = (ROOT / "deploy" / "cloud.example.toml").read_text().replace("/var/lib/splitglm/", f"{tmp_path}/")
    (tmp_path / "cloud.toml").write_text(text)
    settings = resolve(flags={}, environment={}, file=tmp_path / "cloud.toml").settings()
    assert settings.psk == pairing[1] and settings.metrics_port == 9411 and settings.executor == "process"


def test_without_a_model_nothing_can_be_served() -> None:
    with pytest.raises(InputError, match="no model is named"):
        resolve(flags={}, environment={}).settings()


def test_the_documents_describe_every_setting_as_it_is() -> None:
    page = (ROOT / "docs" / "operation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| (.*?) \| (.*) \|$", page, re.MULTILINE)
    assert rows == settings_table()


def settings_table() -> list[tuple[str, str, str, str]]:
    """Key, flag, default and help, as docs/operation.md has them."""
    return [
        (known.key, "MODEL" if known.name == "model" else known.flag, _shown_default(known), known.setting.help)
        for known in KNOWN.values()
    ]


def _shown_default(known: Known) -> str:
    return known.shown(known.default).replace("|", "\\|")
