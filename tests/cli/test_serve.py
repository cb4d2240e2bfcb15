"""``cloud serve``: its ready line, its refusals, its end."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from cli_runs import LAYERS, Run, Served, finish, one_line_error, readline, serve, start

from splitglm_cloud.settings_spec import parse_layers
from splitglm_core.errors import InputError
from splitglm_core.ranges import LayerRange
from splitglm_security.keys import PairingCode


def test_the_ready_line_for_people_names_address_and_key(tiny: str, splitglm: Run, tmp_path: Path) -> None:
    key_file = tmp_path / "keys" / "node.key"
    process = start("cloud", "serve", tiny, "--listen", "127.0.0.1:0", "--key-file", str(key_file))
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "127.0.0.1:" in line and f"layers [0, {LAYERS})" in line
    assert splitglm("keys", "show", "--key-file", str(key_file)).out.strip() in line
    assert key_file.stat().st_mode & 0o077 == 0
    process.send_signal(signal.SIGINT)
    outcome = finish(process)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_the_ready_line_for_programs_is_json(tiny: str, cloud: Served) -> None:
    ready = cloud.ready
    assert ready["event"] == "ready" and ready["model"] == tiny and ready["pid"] == cloud.process.pid
    assert ready["layers"] == [0, LAYERS] and ready["embedding"] and ready["head"] and not ready["paired"]
    assert len(bytes.fromhex(ready["fingerprint"])) == 32 and ready["runner"].startswith("onnxruntime")
    assert cloud.sessions_open() == 0


def test_the_ready_line_tells_of_tenants_and_where_the_metrics_really_are(tiny: str, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.touch(0o600)
    file.write_text(f"[[tenant]]\nname = 'lab'\ncode = '{PairingCode.generate().text}'\n")
    for served in serve(tiny, "--listen", "0.0.0.0:0", "--tenants-file", str(file)):
        assert served.ready["paired"] and served.address.startswith("0.0.0.0:")
        assert served.ready["metrics"].startswith("http://127.0.0.1:")
        assert served.sessions_open() == 0


def test_the_torch_runner_serves_the_same_answers(tiny: str, splitglm: Run) -> None:
    pytest.importorskip("torch")
    ask = (
        "run",
        tiny,
        "hello",
        "--max-tokens",
        "8",
        "--ignore-eos",
        "--precision",
        "fp32",
        "--codec",
        "fp32",
        "--json",
    )
    alone = splitglm(*ask).document()
    for served in serve(tiny, "--runner", "torch"):
        assert served.ready["runner"].startswith("torch")
        assert splitglm(*ask, *served.trusted, "--split", "2").document()["token_ids"] == alone["token_ids"]


def test_the_server_ends_when_the_program_that_started_it_closes_its_input(tiny: str) -> None:
    process = start("cloud", "serve", tiny, "--listen", "127.0.0.1:0", "--json", "--until-stdin-closes")
    assert readline(process)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0


def test_a_taken_port_is_exit_71(splitglm: Run, tiny: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        outcome = splitglm("cloud", "serve", tiny, "--listen", address)
        assert outcome.code == 71 and address in one_line_error(outcome) and "--listen" in outcome.err
        port = str(taken.getsockname()[1])
        metrics = splitglm("cloud", "serve", tiny, "--listen", "127.0.0.1:0", "--metrics-port", port)
        assert metrics.code == 71 and "--metrics-port" in one_line_error(metrics)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--listen", "0.0.0.0:0"), "--allow-anonymous"),
        (("--listen", "nowhere"), "HOST:PORT"),
        (("--layers", "3"), "A:B"),
        (("--layers", "3:3"), "A < B"),
        (("--layers", "2:9"), "4 layers"),
        (("--runner", "llama"), "onnx"),
        (("--log-level", "loud"), "log level"),
    ],
)
def test_settings_that_cannot_be_served_are_exit_64(
    splitglm: Run, tiny: str, flags: tuple[str, ...], said: str
) -> None:
    outcome = splitglm("cloud", "serve", tiny, *flags)
    assert outcome.code == 64 and said in one_line_error(outcome)


def test_a_key_file_that_others_may_read_is_exit_71(splitglm: Run, tiny: str, tmp_path: Path) -> None:
    key_file = tmp_path / "node.key"
    assert splitglm("keys", "show", "--key-file", str(key_file)).code == 0
    key_file.chmod(0o644)
    outcome = splitglm("cloud", "serve", tiny, "--key-file", str(key_file))
    assert outcome.code == 71 and "chmod 600" in one_line_error(outcome)


def test_layers_are_half_open_ranges() -> None:
    assert parse_layers(None) is None
    assert parse_layers("0:3") == LayerRange(0, 3)
    for bad in ("", ":", "1:", ":2", "2:1", "a:b", "-1:2", "1:2:3"):
        with pytest.raises(InputError):
            parse_layers(bad)
