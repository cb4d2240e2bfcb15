"""Clouds that are down, foreign, untrusted or nonsense: one line, the right exit code, nothing left behind."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import Run, Served, one_line_error, serve

from splitglm_security.keys import NodeKey

CUT = ("--split", "2", "--max-tokens", "4")


@pytest.fixture
def config(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pins of this test alone."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def nonsense() -> Iterator[str]:
    """A TCP server that answers everything with garbage."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    peer.sendall(b"\x00\xffHTTP/0.1 teapot\r\n\r\n" * 50)

        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_a_cloud_that_is_down_is_exit_69_for_a_fixed_cut(
    splitglm: Run, tiny: str, config: Path, closed_port: str
) -> None:
    outcome = splitglm("run", tiny, "hello", "--cloud", closed_port, *CUT)
    assert outcome.code == 69
    assert closed_port in one_line_error(outcome) and "cloud serve" in outcome.err
    assert not list(config.rglob("*"))


def test_without_a_fixed_cut_the_device_answers_and_says_so(
    splitglm: Run, tiny: str, config: Path, closed_port: str
) -> None:
    outcome = splitglm("run", tiny, "hello", "--cloud", closed_port, "--max-tokens", "4", "--ignore-eos", "--json")
    assert outcome.code == 0
    statistics = outcome.document()["statistics"]
    assert statistics["new_tokens"] == 4
    assert any(closed_port in fallback for fallback in statistics["fallbacks"])


def test_garbage_on_the_port_is_exit_69(splitglm: Run, tiny: str, config: Path, nonsense: str) -> None:
    outcome = splitglm("run", tiny, "hello", "--cloud", nonsense, *CUT)
    assert outcome.code == 69
    one_line_error(outcome)


def test_a_cloud_whose_key_is_not_pinned_is_exit_77_and_says_how_to_pin_it(
    splitglm: Run, tiny: str, config: Path, cloud: Served
) -> None:
    outcome = splitglm("run", tiny, "hello", "--cloud", cloud.address, *CUT)
    assert outcome.code == 77
    assert f"splitglm keys pin {cloud.address} {cloud.key}" in one_line_error(outcome)
    assert not (config / "splitglm" / "pins.json").exists()


def test_a_cloud_with_another_key_than_expected_is_exit_77(
    splitglm: Run, tiny: str, config: Path, cloud: Served
) -> None:
    foreign = NodeKey.generate().text
    given = splitglm("run", tiny, "hello", "--cloud", cloud.address, "--cloud-key", foreign, *CUT)
    assert given.code == 77 and "in between" in one_line_error(given)
    assert splitglm("keys", "pin", cloud.address, foreign).code == 0
    pinned = splitglm("run", tiny, "hello", "--cloud", cloud.address, *CUT)
    assert pinned.code == 77 and "in between" in one_line_error(pinned)
    first_use = splitglm("run", tiny, "hello", "--cloud", cloud.address, "--trust-first-use", *CUT)
    assert first_use.code == 77, "trust on first use never replaces a pin"
    unfixed = splitglm("run", tiny, "hello", "--cloud", cloud.address, "--max-tokens", "4")
    assert unfixed.code == 77, "the wrong cloud is never silently left out"


def test_trust_on_first_use_pins_the_key(splitglm: Run, tiny: str, config: Path, cloud: Served) -> None:
    flags = ("--cloud", cloud.address, *CUT, "--quiet")
    assert splitglm("run", tiny, "hello", "--trust-first-use", *flags).code == 0
    (pin,) = splitglm("keys", "pins", "--json").document()
    assert (pin["address"], pin["key"]) == (cloud.address, cloud.key)
    assert splitglm("run", tiny, "hello", *flags).code == 0


def test_a_cloud_with_another_model_is_exit_78(
    splitglm: Run, tiny: str, other: str, config: Path, cloud: Served
) -> None:
    outcome = splitglm("run", other, "hello", *cloud.trusted, "--max-tokens", "4")
    assert outcome.code == 78
    assert "serves model" in one_line_error(outcome) and "splitglm show" in outcome.err


def test_only_paired_devices_reach_a_paired_cloud(splitglm: Run, tiny: str, config: Path) -> None:
    code, foreign = config / "cloud.code", config / "foreign.code"
    for path in (code, foreign):
        assert splitglm("keys", "pair", "--file", str(path)).code == 0
    for served in serve(tiny, "--psk-file", str(code)):
        assert served.ready["paired"] is True
        flags = (*served.trusted, *CUT, "--quiet")
        assert splitglm("run", tiny, "hello", *flags, "--psk-file", str(code)).code == 0
        for wrong in ((), ("--psk-file", str(foreign))):
            outcome = splitglm("run", tiny, "hello", *flags, *wrong)
            assert outcome.code == 76
            one_line_error(outcome)
