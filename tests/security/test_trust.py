"""Pins and trust: who is believed, who is refused, and what the refused one's user reads."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from splitglm_core.errors import DeviceError, InputError, PeerUntrusted
from splitglm_security.keys import NodeKey, public_key_text
from splitglm_security.trust import Pin, PinStore, Trust, TrustPolicy, Verdict

DAY = "2026-11-21"
ALICE, MALLORY = NodeKey.generate().public, NodeKey.generate().public
ADDRESS = "cloud.example:50051"


@pytest.fixture
def store(tmp_path: Path) -> PinStore:
    return PinStore(tmp_path / "pins.json")


def test_a_pinned_key_is_accepted_and_any_other_refused(store: PinStore) -> None:
    store.pin(ADDRESS, ALICE, on_date=DAY)
    for policy in TrustPolicy:
        trust = Trust(store, policy)
        assert trust.check(ADDRESS, ALICE, on_date="2027-01-01") is Verdict.PINNED
        with pytest.raises(PeerUntrusted) as refused:
            trust.check(ADDRESS, MALLORY, on_date="2027-01-01")
        text = refused.value.one_line()
        assert public_key_text(ALICE) in text and public_key_text(MALLORY) in text and DAY in text
        assert f"splitglm keys pin {ADDRESS} {public_key_text(MALLORY)}" in text
    assert store.get(ADDRESS) == Pin(ALICE, DAY)


def test_an_unknown_address_is_refused_unless_first_use_is_allowed(store: PinStore) -> None:
    with pytest.raises(PeerUntrusted) as refused:
        Trust(store, TrustPolicy.PINNED).check(ADDRESS, ALICE, on_date=DAY)
    assert f"splitglm keys pin {ADDRESS} {public_key_text(ALICE)}" in refused.value.hint
    assert store.all() == {}


def test_first_use_is_remembered_and_a_change_refused(store: PinStore, tmp_path: Path) -> None:
    trust = Trust(store, TrustPolicy.TRUST_ON_FIRST_USE)
    assert trust.check(ADDRESS, ALICE, on_date=DAY) is Verdict.FIRST_USE
    again = Trust(PinStore(tmp_path / "pins.json"), TrustPolicy.TRUST_ON_FIRST_USE)
    assert again.check("  CLOUD.example:50051 ", ALICE, on_date=DAY) is Verdict.PINNED
    with pytest.raises(PeerUntrusted):
        again.check(ADDRESS, MALLORY, on_date=DAY)
    store.pin(ADDRESS, MALLORY, on_date=DAY)  # the person's own decision
    assert again.check(ADDRESS, MALLORY, on_date=DAY) is Verdict.PINNED
    with pytest.raises(PeerUntrusted):
        again.check(ADDRESS, ALICE, on_date=DAY)


def test_a_key_given_by_hand_is_the_only_one_and_is_not_stored(store: PinStore) -> None:
    store.pin(ADDRESS, MALLORY, on_date=DAY)
    trust = Trust(store, TrustPolicy.TRUST_ON_FIRST_USE, explicit_key=ALICE)
    assert trust.check(ADDRESS, ALICE, on_date=DAY) is Verdict.EXPLICIT
    with pytest.raises(PeerUntrusted):
        trust.check(ADDRESS, MALLORY, on_date=DAY)
    assert store.all() == {ADDRESS: Pin(MALLORY, DAY)}


def test_a_peer_without_a_key_is_refused(store: PinStore) -> None:
    for nothing in (None, b"", bytes(31)):
        with pytest.raises(PeerUntrusted):
            Trust(store, TrustPolicy.TRUST_ON_FIRST_USE).check(ADDRESS, nothing, on_date=DAY)
    assert store.all() == {}


def test_two_meetings_at_once_cannot_both_be_first(store: PinStore) -> None:
    keys = [NodeKey.generate().public for _ in range(8)]
    gate, outcomes = threading.Barrier(8), []

    def meet(key: bytes) -> None:
        trust = Trust(store, TrustPolicy.TRUST_ON_FIRST_USE)
        gate.wait()
        try:
            outcomes.append((trust.check(ADDRESS, key, on_date=DAY), key))
        except PeerUntrusted:
            outcomes.append((None, key))

    threads = [threading.Thread(target=meet, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    accepted = [key for verdict, key in outcomes if verdict is not None]
    assert len(outcomes) == 8 and len(accepted) == 1
    pin = store.get(ADDRESS)
    assert pin is not None and pin.key == accepted[0]


def test_writers_at_once_lose_no_pin(store: PinStore) -> None:
    gate = threading.Barrier(8)

    def pin(number: int) -> None:
        gate.wait()
        store.pin(f"node{number}:1", ALICE, on_date=DAY)

    threads = [threading.Thread(target=pin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.all()) == 8


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"format": "splitglm-pins-1"}',
        '{"format": "splitglm-pins-2", "pins": {}}',
        '{"format": "splitglm-pins-1", "pins": []}',
        '{"format": "splitglm-pins-1", "pins": {"a:1": {}}}',
        '{"format": "splitglm-pins-1", "pins": {"a:1": {"key": "sglm1aaaa", "first_seen": "2026-11-21"}}}',
        '{"format": "splitglm-pins-1", "pins": {"a:1": {"key": 5, "first_seen": "2026-11-21"}}}',
        '{"format": "splitglm-pins-1", "pins": {}, "more": 1}',
        "[" * 100_000,
        "\x00" * 100,
        "x" * (1 << 21),
    ],
)
def test_a_damaged_store_is_an_error_and_never_an_empty_one(content: str, tmp_path: Path) -> None:
    path = tmp_path / "pins.json"
    path.write_text(content)
    path.chmod(0o600)
    trust = Trust(PinStore(path), TrustPolicy.TRUST_ON_FIRST_USE)
    with pytest.raises(DeviceError):
        trust.check(ADDRESS, MALLORY, on_date=DAY)
    with pytest.raises(DeviceError):
        PinStore(path).pin(ADDRESS, MALLORY, on_date=DAY)
    assert path.read_text() == content


@pytest.mark.skipif(os.name != "posix", reason="mode bits mean nothing here")
def test_a_store_that_others_may_change_is_refused(store: PinStore, tmp_path: Path) -> None:
    store.pin(ADDRESS, ALICE, on_date=DAY)
    path = tmp_path / "pins.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o622)
    with pytest.raises(DeviceError):
        store.get(ADDRESS)


def test_an_interrupted_write_leaves_the_old_pins(
    store: PinStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pin(ADDRESS, ALICE, on_date=DAY)

    def interrupted(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(DeviceError):
            store.pin(ADDRESS, MALLORY, on_date=DAY)
    assert store.all() == {ADDRESS: Pin(ALICE, DAY)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pins.json", "pins.json.lock"]


def test_pins_can_be_removed_and_are_readable_by_people(store: PinStore, tmp_path: Path) -> None:
    store.pin(ADDRESS, ALICE, on_date=DAY)
    document = json.loads((tmp_path / "pins.json").read_text())
    assert document["pins"] == {ADDRESS: {"key": public_key_text(ALICE), "first_seen": DAY}}
    assert store.remove(ADDRESS) and not store.remove(ADDRESS)
    assert store.all() == {}


@pytest.mark.parametrize(
    "address", ["", " ", "a b:1", "a;rm -rf ~", "$(x):1", "`x`:1", "-rf", "a\n:1", "a\x1b[31m:1", "a" * 256, "é:1"]
)
def test_an_address_that_a_shell_or_terminal_would_act_on_is_refused(address: str, store: PinStore) -> None:
    with pytest.raises(InputError):
        store.pin(address, ALICE, on_date=DAY)
    with pytest.raises(InputError):
        Trust(store, TrustPolicy.TRUST_ON_FIRST_USE).check(address, ALICE, on_date=DAY)


@pytest.mark.parametrize("address", ["localhost:50051", "10.0.0.1:1", "[::1]:50051", "[fe80::1%eth0]:1", "unix:/run/s"])
def test_usual_addresses_are_fine(address: str, store: PinStore) -> None:
    store.pin(address, ALICE, on_date=DAY)
    assert store.get(address) == Pin(ALICE, DAY)


def test_wrong_dates_and_keys_are_refused(store: PinStore) -> None:
    for key, day in ((ALICE, "today"), (ALICE, ""), (b"short", DAY)):
        with pytest.raises(InputError):
            store.pin(ADDRESS, key, on_date=day)
    with pytest.raises(InputError):
        Trust(store, TrustPolicy.PINNED, explicit_key=b"short")
