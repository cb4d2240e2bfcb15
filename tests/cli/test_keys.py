"""``keys``: identity, pins and pairing codes on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import Run, one_line_error, start

from splitglm_cli.opening import read_psk
from splitglm_security.keys import NodeKey, PairingCode

ADDRESS = "cloud.example:7411"


@pytest.fixture
def config(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "splitglm"


def test_show_makes_a_key_once(splitglm: Run, config: Path) -> None:
    first = splitglm("keys", "show")
    assert first.code == 0 and first.out.startswith("sglm1")
    assert splitglm("keys", "show", "--json").document() == {
        "key": first.out.strip(),
        "key_file": str(config / "node.key"),
    }
    assert (config / "node.key").stat().st_mode & 0o077 == 0


def test_a_pin_is_kept_listed_and_removed(splitglm: Run, config: Path) -> None:
    key = NodeKey.generate().text
    assert "keys pin" in splitglm("keys", "pins").err
    assert splitglm("keys", "pin", ADDRESS, key).code == 0
    assert key in splitglm("keys", "pins").out
    (pin,) = splitglm("keys", "pins", "--json").document()
    assert (pin["address"], pin["key"]) == (ADDRESS, key)
    assert splitglm("keys", "unpin", ADDRESS).code == 0
    assert splitglm("keys", "pins", "--json").document() == []
    gone = splitglm("keys", "unpin", ADDRESS)
    assert gone.code == 64 and "not pinned" in one_line_error(gone)


def test_what_is_no_key_or_address_is_refused(splitglm: Run, config: Path) -> None:
    key = NodeKey.generate().text
    mistyped = key[:-1] + ("a" if key[-1] != "a" else "b")
    for arguments in ((ADDRESS, mistyped), (ADDRESS, "hello"), ("cloud.example", key)):
        outcome = splitglm("keys", "pin", *arguments)
        assert outcome.code == 64
        one_line_error(outcome)
    assert splitglm("keys", "pins", "--json").document() == []


def test_a_pairing_code_is_private_shown_only_when_asked_and_never_overwritten(splitglm: Run, config: Path) -> None:
    path = config / "pairing.code"
    made = splitglm("keys", "pair")
    assert made.code == 0 and made.out == "" and str(path) in made.err
    assert path.stat().st_mode & 0o777 == 0o600
    code = path.read_text().strip()
    assert code not in made.err
    again = splitglm("keys", "pair")
    assert again.code == 71 and "never overwritten" in one_line_error(again)
    assert path.read_text().strip() == code
    shown = splitglm("keys", "pair", "--file", str(config / "other.code"), "--reveal")
    assert PairingCode.parse(shown.out).text == shown.out.strip()


def test_a_code_can_be_entered_on_the_other_side(config: Path, tmp_path: Path) -> None:
    code = PairingCode.generate()
    path = tmp_path / "entered.code"
    process = start("keys", "pair", "--enter", "--file", str(path))
    _, err = process.communicate(code.text + "\n", timeout=30)
    assert process.returncode == 0 and code.text not in err
    assert read_psk(path) == code.psk()
    wrong = start("keys", "pair", "--enter", "--file", str(tmp_path / "wrong.code"))
    _, err = wrong.communicate("sglmp1notacode\n", timeout=30)
    assert wrong.returncode == 64 and "mistyped" in err and not (tmp_path / "wrong.code").exists()


def test_a_pairing_file_that_others_may_read_is_not_used(splitglm: Run, tiny: str, config: Path) -> None:
    assert splitglm("keys", "pair").code == 0
    (config / "pairing.code").chmod(0o640)
    outcome = splitglm("run", tiny, "hi", "--cloud", "127.0.0.1:9", "--psk-file", str(config / "pairing.code"))
    assert outcome.code == 71 and "chmod 600" in one_line_error(outcome)
