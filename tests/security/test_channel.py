"""The record layer between honest ends: what arrives, limits, key updates, ends, buffers, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from timeit import repeat
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from splitglm_core.errors import InternalError, SecurityError
from splitglm_security import channel as channel_module
from splitglm_security.channel import Channel, Kind
from splitglm_security.limits import HEADER_BYTES, TAG_BYTES, KeyLimits

Channels = Callable[..., tuple[Channel, Channel]]


class SpyingAead:
    """AESGCM that remembers the buffers it was asked to fill."""

    seen: list[bytearray]

    def __init__(self, key: bytes) -> None:
        self._inner = AESGCM(key)

    def encrypt_into(self, *arguments: Any) -> int:
        return self._inner.encrypt_into(*arguments)

    def decrypt_into(self, nonce: bytes, data: Any, associated: bytes, out: bytearray) -> int:
        SpyingAead.seen.append(out)
        return self._inner.decrypt_into(nonce, data, associated, out)


def test_the_library_leaves_unauthenticated_plaintext_in_the_buffer() -> None:
    """The trap that the next test is about; if this fails, the library has changed and the wipe may go."""
    aead, nonce, out = AESGCM(bytes(32)), bytes(12), bytearray(64)
    forged = bytearray(aead.encrypt(nonce, b"secret!!" * 8, b""))
    forged[-1] ^= 1
    with pytest.raises(InvalidTag):
        aead.decrypt_into(nonce, forged, b"", out)
    assert bytes(out) == b"secret!!" * 8


def test_a_forged_record_leaves_no_plaintext_behind(channels: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    SpyingAead.seen = []
    monkeypatch.setattr(channel_module, "AESGCM", SpyingAead)
    device, cloud = channels()
    forged = bytearray(device.seal(b"secret!!" * 8))
    forged[-1] ^= 1
    with pytest.raises(SecurityError):
        cloud.open(forged)
    assert [bytes(buffer) for buffer in SpyingAead.seen] == [bytes(64)]


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4096, 1 << 20])
def test_payloads_of_every_size_arrive(size: int, channels: Channels) -> None:
    device, cloud = channels()
    payload = np.arange(size, dtype=np.uint8).tobytes()
    record = device.seal(payload)
    assert len(record) == HEADER_BYTES + size + TAG_BYTES
    opened = cloud.open(record)
    assert opened.kind is Kind.DATA and opened.payload == payload


def test_arrays_are_sealed_without_a_copy_by_the_caller(channels: Channels) -> None:
    device, cloud = channels()
    hidden = np.linspace(-3, 3, 64, dtype=np.float32).reshape(4, 16)
    opened = cloud.open(memoryview(device.seal(memoryview(hidden))))
    assert np.array_equal(np.frombuffer(opened.payload, np.float32).reshape(4, 16), hidden)


def test_equal_payloads_give_unlike_records(channels: Channels) -> None:
    device, cloud = channels()
    records = [device.seal(b"token") for _ in range(50)] + [cloud.seal(b"token") for _ in range(50)]
    assert len({record[HEADER_BYTES:] for record in records}) == 100


def test_a_key_update_changes_one_direction_only(channels: Channels) -> None:
    device, cloud = channels()
    before = device.seal(b"text")
    assert cloud.open(before).payload == b"text"
    assert cloud.open(device.key_update()).kind is Kind.KEY_UPDATE
    after = device.seal(b"text")
    assert after[4:8] == (1).to_bytes(4, "big") and after[8:16] == bytes(8)
    assert cloud.open(after).payload == b"text"
    assert device.open(cloud.seal(b"back")).payload == b"back"
    assert cloud.seal(b"")[4:8] == bytes(4)


def test_a_key_update_drops_the_old_secret(channels: Channels) -> None:
    device, _ = channels()
    old = device._sender._secret
    assert any(old)
    device.key_update()
    assert not any(old) and any(device._sender._secret)


def test_the_end_drops_all_secrets(channels: Channels) -> None:
    device, cloud = channels()
    secrets = [device._sender._secret, device._receiver._secret]
    device.open(cloud.close())
    device.close()
    assert not any(secrets[0]) and not any(secrets[1])
    assert "half-closed" in repr(device)


def test_a_clean_end_is_told_from_a_cut(channels: Channels) -> None:
    device, cloud = channels()
    assert cloud.open(device.close()).kind is Kind.FIN
    cloud.finish()
    assert device.open(cloud.seal(b"still answering")).payload == b"still answering"
    with pytest.raises(SecurityError):
        device.finish()
    with pytest.raises(InternalError):
        device.seal(b"after the end")


def test_an_alert_ends_a_direction_uncleanly(channels: Channels) -> None:
    device, cloud = channels()
    opened = cloud.open(device.seal(b"BUSY", Kind.ALERT))
    assert opened.kind is Kind.ALERT and opened.payload == b"BUSY"
    with pytest.raises(SecurityError):
        cloud.finish()
    with pytest.raises(InternalError):
        device.seal(b"more")


def test_limits_of_a_key_are_kept_on_both_sides(channels: Channels) -> None:
    limits = KeyLimits(records=4, plaintext_bytes=1 << 20)
    device, cloud = channels(limits=limits)
    assert not device.needs_key_update
    for _ in range(3):
        cloud.open(device.seal(b""))
    assert device.needs_key_update
    with pytest.raises(InternalError):
        device.seal(b"")
    cloud.open(device.key_update())  # the last place is kept for it
    assert not device.needs_key_update
    assert cloud.open(device.seal(b"on")).payload == b"on"

    careless, _ = channels()
    _, strict = channels(limits=limits)
    for _ in range(3):
        strict.open(careless.seal(b""))
    with pytest.raises(SecurityError):
        strict.open(careless.seal(b""))


def test_byte_limits_of_a_key_are_kept_on_both_sides(channels: Channels) -> None:
    limits = KeyLimits(plaintext_bytes=100)
    device, cloud = channels(limits=limits)
    cloud.open(device.seal(bytes(60)))
    assert device.needs_key_update
    with pytest.raises(InternalError):
        device.seal(bytes(41))
    cloud.open(device.key_update())
    cloud.open(device.seal(bytes(100)))
    careless, _ = channels()
    _, strict = channels(limits=limits)
    strict.open(careless.seal(bytes(60)))
    with pytest.raises(SecurityError):
        strict.open(careless.seal(bytes(41)))


def test_epochs_run_out_before_they_repeat(channels: Channels) -> None:
    device, cloud = channels(limits=KeyLimits(epochs=2))
    cloud.open(device.key_update())
    with pytest.raises(InternalError):
        device.key_update()
    careless, _ = channels()
    _, strict = channels(limits=KeyLimits(epochs=2))
    strict.open(careless.key_update())
    with pytest.raises(SecurityError):
        strict.open(careless.key_update())


def test_records_that_may_not_be_sent_are_our_own_error(channels: Channels) -> None:
    device, cloud = channels(max_record=2048)
    for wrong in (
        lambda: device.seal(bytes(2049)),
        lambda: device.seal(bytes(65), Kind.ALERT),
        lambda: device.seal(b"", Kind.FIN),
        lambda: device.seal(b"", Kind.KEY_UPDATE),
    ):
        with pytest.raises(InternalError):
            wrong()
    assert cloud.open(device.seal(b"nothing was spent")).payload == b"nothing was spent"


def test_a_cipher_that_fails_spends_its_nonce(channels: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(SpyingAead):
        def encrypt_into(self, *arguments: Any) -> int:
            raise MemoryError

    device, _ = channels()
    sound = device._sender._aead
    device._sender._aead = Broken(bytes(32))  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        device.seal(b"first")
    device._sender._aead = sound
    assert device.seal(b"second")[8:16] == (1).to_bytes(8, "big")


def test_the_receiving_half_dies_by_itself(channels: Channels) -> None:
    """Not only through the channel: no second record may slip in before the channel has drawn the conclusion."""
    device, cloud = channels()
    good = device.seal(b"good")
    assert cloud._receiver.open(good[:-1]) is None
    assert cloud._receiver.open(good) is None and not cloud._receiver.alive


def test_a_forked_copy_cannot_seal(channels: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    device, cloud = channels()
    cloud.open(device.seal(b"parent"))
    with monkeypatch.context() as patch:
        patch.setattr(channel_module.os, "getpid", lambda: -1)
        with pytest.raises(InternalError):
            device.seal(b"child, under the parent's next nonce")


def test_two_threads_never_share_a_nonce_and_sealing_runs_beside_opening(channels: Channels) -> None:
    device, cloud = channels()
    incoming = [cloud.seal(bytes([i % 256]) * 5000) for i in range(400)]
    sealed: list[bytes] = []
    opened: list[bytearray] = []
    gate = threading.Barrier(3)

    def seal() -> None:
        gate.wait()
        for i in range(400):
            sealed.append(device.key_update() if i % 97 == 96 else device.seal(bytes(5000)))

    def open_all() -> None:
        gate.wait()
        opened.extend(device.open(record).payload for record in incoming)

    threads = [threading.Thread(target=target) for target in (seal, seal, open_all)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    places = [record[4:16] for record in sealed]  # epoch and sequence number give key and nonce
    assert len(sealed) == len(set(places)) == 800
    assert [payload[0] for payload in opened] == [i % 256 for i in range(400)]
    for record in sorted(sealed, key=lambda record: record[4:16]):
        cloud.open(record)


def test_a_malformed_record_is_refused_in_under_ten_microseconds(channels: Channels) -> None:
    _, cloud = channels()
    bad = bytes(1 << 20)
    assert cloud._receiver._open(bad) is None and cloud._receiver.alive
    best_s = min(repeat(lambda: cloud._receiver._open(bad), number=200, repeat=20)) / 200
    assert best_s < 10e-6


def test_a_malformed_record_never_reaches_the_cipher(channels: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    SpyingAead.seen = []
    monkeypatch.setattr(channel_module, "AESGCM", SpyingAead)
    for offset in range(HEADER_BYTES):
        device, cloud = channels()
        record = bytearray(device.seal(bytes(10)))
        record[offset] ^= 0x40
        with pytest.raises(SecurityError):
            cloud.open(record)
    assert SpyingAead.seen == []
