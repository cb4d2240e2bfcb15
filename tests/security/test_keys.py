"""Identity keys and pairing codes: files, text forms, mistakes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import DeviceError, InputError, StorageFull
from splitglm_security import files
from splitglm_security.keys import NodeKey, PairingCode, parse_public_key, public_key_text

posix = pytest.mark.skipif(os.name != "posix", reason="mode bits mean nothing here")


def test_a_key_is_made_once_and_then_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "node.key"
    first = NodeKey.load_or_create(path)
    content = path.read_bytes()
    assert NodeKey.load_or_create(path).public == first.public
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["node.key"]


@posix
def test_the_file_is_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "node.key"
    before = os.umask(0)  # even with a careless umask
    try:
        NodeKey.load_or_create(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620, 0o602, 0o666, 0o610])
def test_a_file_that_others_may_touch_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    NodeKey.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(DeviceError) as refused:
        NodeKey.load_or_create(path)
    assert "chmod 600" in refused.value.hint


@posix
def test_a_file_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "node.key"
    NodeKey.load_or_create(path)
    if os.geteuid() == 0:
        os.chown(path, 4242, -1)
    else:
        monkeypatch.setattr(files.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(DeviceError, match="somebody else"):
        NodeKey.load_or_create(path)


@posix
def test_a_directory_that_others_may_change_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(DeviceError):
        NodeKey.load_or_create(directory / "node.key")
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\n", b"sglms1", b"\xff\xfe" * 40, b"0" * 32, b"x" * 4096])
def test_a_damaged_key_file_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(DeviceError):
        NodeKey.load_or_create(path)
    assert path.read_bytes() == content


def test_a_key_file_with_one_wrong_letter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    NodeKey.load_or_create(path)
    text = path.read_text()
    path.write_text(text[:20] + ("a" if text[20] != "a" else "b") + text[21:])
    with pytest.raises(DeviceError):
        NodeKey.load_or_create(path)


def test_a_directory_or_a_missing_right_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "node.key").mkdir()
    with pytest.raises(DeviceError):
        NodeKey.load_or_create(tmp_path / "node.key")
    (tmp_path / "plain").write_text("")
    with pytest.raises(DeviceError):
        NodeKey.load_or_create(tmp_path / "plain" / "node.key")


def test_processes_that_start_at_once_get_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    gate, keys = threading.Barrier(8), []

    def start() -> None:
        gate.wait()
        keys.append(NodeKey.load_or_create(path).public)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8 and len(set(keys)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["node.key"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageFull):
        NodeKey.load_or_create(tmp_path / "node.key")
    assert list(tmp_path.iterdir()) == []


@given(st.binary(min_size=32, max_size=32))
def test_public_keys_survive_being_typed(key: bytes) -> None:
    text = public_key_text(key)
    assert text.startswith("sglm1") and len(text) == 61
    assert parse_public_key(text) == key
    assert parse_public_key(f"  {text[:10].upper()}-{text[10:30]} {text[30:]}\n") == key


@given(st.binary(min_size=32, max_size=32), st.data())
def test_a_mistyped_key_is_noticed(key: bytes, data: st.DataObject) -> None:
    text = public_key_text(key)
    at = data.draw(st.integers(5, len(text) - 1))
    other = data.draw(st.sampled_from([c for c in "abcdefghijklmnopqrstuvwxyz234567" if c != text[at]]))
    with pytest.raises(InputError):
        parse_public_key(text[:at] + other + text[at + 1 :])


@pytest.mark.parametrize("text", ["", "sglm1", "sglm2aaaa", "ssh-ed25519 AAAA", "sglm1" + "é" * 56, "a" * 10**6])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_public_key(text)


def test_a_secret_given_as_a_public_key_is_refused_without_being_shown(tmp_path: Path) -> None:
    NodeKey.load_or_create(tmp_path / "node.key")
    for secret in ((tmp_path / "node.key").read_text().strip(), PairingCode.generate().text):
        with pytest.raises(InputError, match="secret") as refused:
            parse_public_key(secret)
        assert secret[8:] not in refused.value.one_line()


@pytest.mark.parametrize("bits", [128, 256])
def test_a_pairing_code_gives_both_sides_the_same_psk(bits: int) -> None:
    code = PairingCode.generate(bits)
    typed = PairingCode.parse(code.text.upper())
    assert typed.psk() == code.psk() and len(code.psk()) == 32
    assert code.psk() != PairingCode.generate(bits).psk()
    assert len(code.text) == {128: 38, 256: 62}[bits]


def test_the_psk_of_a_code_never_changes() -> None:
    # Frozen: a device and a cloud of different releases must derive the same key.
    assert (
        PairingCode(bytes(range(16))).psk().hex() == "d4ba8cdea46c7205d5913c3fd6af2e041499692a06a078b134d7431dee05096e"
    )
    assert (
        PairingCode(bytes(range(32))).psk().hex() == "e9293dd9f7c278dfca03eeeee0b441df72e82975a8cd5fad35f943223a437afc"
    )


@pytest.mark.parametrize("bits", [0, 8, 64, 127, 129, 512, -128])
def test_weak_pairing_codes_cannot_be_made(bits: int) -> None:
    with pytest.raises(InputError):
        PairingCode.generate(bits)


def test_a_code_given_as_the_path_of_its_file_is_refused_without_being_shown(tmp_path: Path) -> None:
    code = PairingCode.generate().text
    for path in (Path(code), tmp_path / code.upper()):
        with pytest.raises(InputError, match="path of its file") as refused:
            PairingCode.read(path)
        assert code not in refused.value.one_line().lower()


@pytest.mark.parametrize("text", ["", "sglmp1", "1234", "sglmp1" + "a" * 32, "sglm1" + "a" * 56, "sglmp1" + "!" * 32])
def test_what_is_no_pairing_code_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(InputError) as refused:
        PairingCode.parse(text)
    assert text[6:] == "" or text[6:] not in refused.value.one_line()
