"""What somebody in the middle can do to records: every case must end the receiving channel.

A case is a function that attacks fresh channels and returns the channel that must have refused and the record it was
given last. ``test_every_hostile_record_is_refused`` counts them.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from splitglm_core.errors import SecurityError
from splitglm_security.channel import Channel, Kind
from splitglm_security.limits import HEADER_BYTES, TAG_BYTES, KeyLimits

Pair = tuple[Channel, Channel]
Channels = Callable[..., Pair]
Attack = Callable[[], tuple[Channel, bytes]]
Cases = Iterator[tuple[str, Attack]]

HEADER = struct.Struct(">BBHIQI")
PAYLOAD = bytes(range(48))


def bit_flips(channels: Channels) -> Cases:
    """Every bit of the header and of the tag, every byte of the text."""
    size = HEADER_BYTES + len(PAYLOAD) + TAG_BYTES
    text = range(HEADER_BYTES, HEADER_BYTES + len(PAYLOAD))
    for offset in range(size):
        region = "header" if offset < HEADER_BYTES else "text" if offset in text else "tag"
        for bit in range(8) if offset not in text else (offset % 8,):

            def attack(offset: int = offset, bit: int = bit) -> tuple[Channel, bytes]:
                device, cloud = channels()
                record = bytearray(device.seal(PAYLOAD))
                record[offset] ^= 1 << bit
                return cloud, bytes(record)

            yield f"flip {region} {offset}.{bit}", attack


def header_values(channels: Channels) -> Cases:
    """Headers as a buggy or hostile peer would write them over good ciphertext."""
    good = {"version": 2, "kind": 1, "flags": 0, "epoch": 0, "sequence": 0, "length": len(PAYLOAD) + TAG_BYTES}
    wrong = {
        "version": (0, 1, 255),
        "kind": (0, 2, 3, 4, 5, 127, 255),
        "flags": (1, 2, 0x8000, 0xFFFF),
        "epoch": (1, 2, 2**31, 2**32 - 1),
        "sequence": (1, 2, 2**31, 2**32, 2**63, 2**64 - 1),
        "length": (0, 1, 15, 16, 63, 65, 1 << 20, (1 << 20) + 17, 2**31, 2**32 - 1),
    }
    for name, values in wrong.items():
        for value in values:

            def attack(name: str = name, value: int = value) -> tuple[Channel, bytes]:
                device, cloud = channels()
                return cloud, HEADER.pack(*{**good, name: value}.values()) + device.seal(PAYLOAD)[HEADER_BYTES:]

            yield f"header {name} = {value}", attack


def lengths(channels: Channels) -> Cases:
    """Too short, cut at every place, extended, too long."""
    size = HEADER_BYTES + len(PAYLOAD) + TAG_BYTES
    for cut in range(size):
        yield f"cut to {cut}", lambda cut=cut: (lambda pair: (pair[1], pair[0].seal(PAYLOAD)[:cut]))(channels())
    for cut in range(HEADER_BYTES + TAG_BYTES, size, 7):

        def shortened(cut: int = cut) -> tuple[Channel, bytes]:
            device, cloud = channels()
            record = bytearray(device.seal(PAYLOAD)[:cut])
            record[16:20] = (cut - HEADER_BYTES).to_bytes(4, "big")
            return cloud, bytes(record)

        yield f"cut to {cut}, length mended", shortened
    for extra in (1, 2, 16, 36, 1000):
        yield f"{extra} more", lambda extra=extra: (lambda p: (p[1], p[0].seal(PAYLOAD) + bytes(extra)))(channels())

    def oversize() -> tuple[Channel, bytes]:
        (big, _), (_, small) = channels(max_record=4096), channels(max_record=2048)
        return small, big.seal(bytes(2049))

    yield "authentic, but over the agreed size", oversize
    yield "no record but zeros", lambda: (channels()[1], bytes(1 << 16))


def order(channels: Channels) -> Cases:
    """Replay, reorder, drop at several distances."""
    for received in range(4):

        def replay(received: int = received) -> tuple[Channel, bytes]:
            device, cloud = channels()
            records = [device.seal(bytes([i])) for i in range(4)]
            for record in records:
                cloud.open(record)
            return cloud, records[received]

        yield f"replay of record {received} of 4", replay
    for missing in range(1, 8):

        def drop(missing: int = missing) -> tuple[Channel, bytes]:
            device, cloud = channels()
            cloud.open(device.seal(b"first"))
            return cloud, [device.seal(b"x") for _ in range(missing + 1)][-1]

        yield f"{missing} dropped", drop

    def swapped_headers() -> tuple[Channel, bytes]:
        device, cloud = channels()
        first, second = device.seal(b"aaaa"), device.seal(b"bbbb")
        return cloud, first[:HEADER_BYTES] + second[HEADER_BYTES:]

    yield "second record under the first one's header", swapped_headers


def splices(channels: Channels) -> Cases:
    """Reflection, the other direction, other sessions, other agreements."""

    def other(to: int, **differs: object) -> Attack:
        def attack() -> tuple[Channel, bytes]:
            mine, theirs = channels(), channels(**differs)
            return mine[to], theirs[1 - to].seal(PAYLOAD)

        return attack

    for to, name in ((0, "device"), (1, "cloud")):

        def reflection(to: int = to) -> tuple[Channel, bytes]:
            pair = channels()
            return pair[to], pair[to].seal(PAYLOAD)

        def misdirected(to: int = to) -> tuple[Channel, bytes]:
            return channels()[to], channels()[to].seal(PAYLOAD)

        yield f"reflection to the {name}", reflection
        yield f"the {name}'s own direction from an equal session", misdirected
        for tag in (1, 2, 3, 255):
            yield f"from session {tag} to the {name}", other(to, tag=tag)
        for prologue in (b"", b"prologuf", b"prologue ", b"Prologue"):
            yield f"agreed on {prologue!r}, to the {name}", other(to, prologue=prologue)


def epochs(channels: Channels) -> Cases:
    """Key updates early, late, forged, replayed."""

    def early() -> tuple[Channel, bytes]:
        device, cloud = channels()
        device.key_update()
        return cloud, device.seal(b"new key, but the update was lost")

    def late() -> tuple[Channel, bytes]:
        device, cloud = channels()
        twin, _ = channels()
        cloud.open(twin.key_update())
        return cloud, device.seal(b"old key")

    def renumbered() -> tuple[Channel, bytes]:
        device, cloud = channels()
        twin, _ = channels()
        cloud.open(twin.key_update())
        old = bytearray(device.seal(b"old key"))
        old[4:8] = (1).to_bytes(4, "big")
        return cloud, bytes(old)

    def replayed() -> tuple[Channel, bytes]:
        device, cloud = channels()
        update = device.key_update()
        cloud.open(update)
        return cloud, update

    def as_update() -> tuple[Channel, bytes]:
        device, cloud = channels()
        record = bytearray(device.seal(b""))
        record[1] = Kind.KEY_UPDATE
        return cloud, bytes(record)

    def update_as_data() -> tuple[Channel, bytes]:
        device, cloud = channels()
        record = bytearray(device.key_update())
        record[1] = Kind.DATA
        return cloud, bytes(record)

    def wrong_direction() -> tuple[Channel, bytes]:
        device, cloud = channels()
        cloud.open(device.key_update())
        record = bytearray(cloud.seal(b""))
        record[4:8] = (1).to_bytes(4, "big")
        return device, bytes(record)

    def beyond_records() -> tuple[Channel, bytes]:
        device, _ = channels()
        _, cloud = channels(limits=KeyLimits(records=2))
        cloud.open(device.seal(b""))
        return cloud, device.seal(b"")

    yield from {
        "early epoch": early,
        "late epoch": late,
        "late epoch, renumbered": renumbered,
        "key update replayed": replayed,
        "data relabelled as key update": as_update,
        "key update relabelled as data": update_as_data,
        "epoch of the other direction": wrong_direction,
        "key used beyond its limit": beyond_records,
    }.items()


def ends(channels: Channels) -> Cases:
    """Anything after FIN or ALERT, forged ends."""
    for last in (Kind.FIN, Kind.ALERT):
        for kind in Kind:

            def after(last: Kind = last, kind: Kind = kind) -> tuple[Channel, bytes]:
                device, cloud = channels()
                cloud.open(device.close() if last is Kind.FIN else device.seal(b"", Kind.ALERT))
                twin, _ = channels()
                twin.seal(b"")
                makers = {Kind.FIN: twin.close, Kind.KEY_UPDATE: twin.key_update}
                return cloud, makers[kind]() if kind in makers else twin.seal(b"", kind)

            yield f"{kind.name} after {last.name}", after
    for kind in (Kind.FIN, Kind.ALERT, Kind.KEY_UPDATE):
        for text in (b"", PAYLOAD):

            def relabelled(kind: Kind = kind, text: bytes = text) -> tuple[Channel, bytes]:
                device, cloud = channels()
                record = bytearray(device.seal(text))
                record[1] = kind
                return cloud, bytes(record)

            yield f"{len(text)} bytes of data relabelled as {kind.name}", relabelled

    def loud_end(kind: int, size: int) -> Attack:
        def attack() -> tuple[Channel, bytes]:
            device, cloud = channels()
            # A peer with the keys, but not our code: FIN and KEY_UPDATE carry nothing, ALERT at most 64 bytes.
            half = device._sender
            assert half._aead is not None
            header = HEADER.pack(1, kind, 0, 0, 0, size + TAG_BYTES)
            return cloud, header + half._aead.encrypt(half._nonce(), bytes(size), header + half._context)

        return attack

    for kind, size in ((Kind.FIN, 1), (Kind.FIN, 1000), (Kind.KEY_UPDATE, 1), (Kind.ALERT, 65), (Kind.ALERT, 4096)):
        yield f"authentic {kind.name} with {size} bytes", loud_end(kind, size)
    for unknown in (0, 5, 6, 255):
        yield f"authentic record of unknown type {unknown}", loud_end(unknown, 0)


GROUPS = (bit_flips, header_values, lengths, order, splices, epochs, ends)


def test_every_hostile_record_is_refused(channels: Channels) -> None:
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    for group in GROUPS:
        for name, attack in group(channels):
            cloud, record = attack()
            with pytest.raises(SecurityError) as refused:
                cloud.open(record)
                pytest.fail(f"accepted: {name}")
            # One text, no cause, and no way back.
            assert refused.value.args == ("secure channel failed",), name
            assert refused.value.__context__ is None and refused.value.__cause__ is None, name
            with pytest.raises(SecurityError):
                cloud.open(record)
            assert not cloud._receiver.alive and not cloud._sender.alive, name
            assert name not in seen
            seen.add(name)
            counts[group.__name__] += 1
    print(f"hostile records refused: {sum(counts.values())} {dict(counts)}")
    assert sum(counts.values()) >= 450, counts


def test_after_the_first_bad_record_not_even_a_good_one_counts(channels: Channels) -> None:
    device, cloud = channels()
    good = device.seal(b"good")
    with pytest.raises(SecurityError):
        cloud.open(good[:-1])
    for call in (lambda: cloud.open(good), lambda: cloud.seal(b"x"), cloud.key_update, cloud.close, cloud.finish):
        with pytest.raises(SecurityError):
            call()


def test_a_stream_cut_anywhere_before_its_end_is_noticed(channels: Channels) -> None:
    for delivered in range(5):
        device, cloud = channels()
        records = [device.seal(b"part") for _ in range(4)] + [device.close()]
        for record in records[:delivered]:
            cloud.open(record)
        with pytest.raises(SecurityError):
            cloud.finish()
        with pytest.raises(SecurityError):
            cloud.open(records[delivered])
