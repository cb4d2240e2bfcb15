"""What somebody in the middle, or at the other end, can do to a handshake: it must fail, and always the same way."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from splitglm_core.errors import SecurityError, VersionMismatch
from splitglm_security.handshake import Established, Hello, Initiator, Responder, Suite
from splitglm_security.hello import HELLO_BYTES
from splitglm_security.keys import NodeKey
from splitglm_security.limits import KEM_PUBLIC_BYTES, MANIFEST_BYTES
from splitglm_security.noise import HandshakeState
from splitglm_security.noise_pattern import parse_protocol
from splitglm_security.psk_ring import PskRing

Attack = Callable[[], object]
Cases = Iterator[tuple[str, Attack]]
HELLO = Hello(suite=Suite.NX, model_fingerprint=bytes(range(32)), features=3, max_record=1 << 16)
PSK_HELLO = replace(HELLO, suite=Suite.NX_PSK)
PSK = bytes(range(100, 132))
NODE = NodeKey.generate()

# Points of small order on Curve25519 and its twist, and non-canonical encodings (as in Wycheproof and RFC 7748).
LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


def run(
    hello: Hello = HELLO,
    *,
    psk: bytes | None = None,
    server_psk: bytes | None = None,
    first: Callable[[bytes], bytes] = lambda m: m,
    second: Callable[[bytes], bytes] = lambda m: m,
    payload: bytes = b"manifest",
) -> Established:
    """A handshake through a proxy that edits the messages; returns the device's end."""
    ring = None if server_psk is None else PskRing([server_psk])
    initiator, responder = Initiator(hello, psk=psk), Responder(NODE, psks=ring)
    responder.accept(first(initiator.first_message()))
    return initiator.finish(second(responder.reply(payload)[0]))


def flip(offset: int, bit: int = 0) -> Callable[[bytes], bytes]:
    def edit(message: bytes) -> bytes:
        out = bytearray(message)
        out[offset] ^= 1 << bit
        return bytes(out)

    return edit


def edited_hellos() -> Cases:
    """Every byte of the hello, and every field set to another allowed value."""
    for offset in range(HELLO_BYTES):
        for bit in (0, 7):
            yield f"hello byte {offset} bit {bit}", lambda o=offset, b=bit: run(first=flip(o, b))
            yield (
                f"psk hello byte {offset} bit {bit}",
                lambda o=offset, b=bit: run(PSK_HELLO, psk=PSK, server_psk=PSK, first=flip(o, b)),
            )
    for other in (
        replace(HELLO, features=0),
        replace(HELLO, max_record=1024),
        replace(HELLO, model_fingerprint=bytes(32)),
    ):
        yield f"hello replaced by {other}", lambda other=other: run(first=lambda m: other.encode() + m[HELLO_BYTES:])


def edited_messages() -> Cases:
    """Bytes of both Noise messages in both suites. A flip in message 1 may only show at the device, but must."""
    for name, hello, psk in (("NX", HELLO, None), ("NX_PSK", PSK_HELLO, PSK)):
        first_bytes = hello.suite.first_message_bytes
        keys_at = hello.suite.opening_bytes
        for offset in [*range(HELLO_BYTES, keys_at + 32), *range(keys_at + 32, first_bytes, 17)]:
            yield (
                f"{name} message 1 byte {offset}",
                lambda o=offset, h=hello, p=psk: run(h, psk=p, server_psk=p, first=flip(o, o % 8)),
            )
        for offset in [*range(32), *range(32, 1120, 11), *range(1120, 1208)]:
            yield (
                f"{name} message 2 byte {offset}",
                lambda o=offset, h=hello, p=psk: run(h, psk=p, server_psk=p, second=flip(o, o % 8)),
            )


def lengths() -> Cases:
    total = HELLO.suite.first_message_bytes
    for size in (0, 1, 4, 5, 43, 44, 75, 76, total - 1):
        yield f"message 1 cut to {size}", lambda size=size: run(first=lambda m: m[:size])
    for extra in (1, 16, 32, 65536):
        yield f"message 1 with {extra} more", lambda extra=extra: run(first=lambda m: m + bytes(extra))
    for size in (0, 1, 31, 32, 1135, 1136, 1199, 1200, 1207):
        yield f"message 2 cut to {size}", lambda size=size: run(second=lambda m: m[:size])
    for extra in (1, 16, MANIFEST_BYTES, 65536):
        yield f"message 2 with {extra} more", lambda extra=extra: run(second=lambda m: m + bytes(extra))


def bad_keys() -> Cases:
    """Low-order points and ML-KEM keys and ciphertexts that are not good ones."""
    for index, point in enumerate(LOW_ORDER):
        for high in (0, 0x80):  # X25519 ignores the top bit
            masked = point[:31] + bytes([point[31] | high])
            name = f"low-order point {index}, top bit {high >> 7}"
            yield (
                f"{name}, device's",
                lambda p=masked: run(first=lambda m: m[:HELLO_BYTES] + p + m[HELLO_BYTES + 32 :]),
            )
            yield f"{name}, cloud's", lambda p=masked: run(second=lambda m: p + m[32:])
    kem_at = HELLO_BYTES + 32
    for name, key in (
        ("all ones", b"\xff" * KEM_PUBLIC_BYTES),
        ("first coefficient q", b"\x01\x0d" + bytes(KEM_PUBLIC_BYTES - 2)),
        ("last coefficient 4095", bytes(1150) + b"\xf0\xff" + bytes(32)),
        ("zeros", bytes(KEM_PUBLIC_BYTES)),
        ("random", os.urandom(KEM_PUBLIC_BYTES)),
    ):
        yield f"ML-KEM key: {name}", lambda key=key: run(first=lambda m: m[:kem_at] + key)
    for name, ciphertext in (("zeros", bytes(1088)), ("ones", b"\xff" * 1088), ("random", os.urandom(1088))):
        yield f"ML-KEM ciphertext: {name}", lambda c=ciphertext: run(second=lambda m: m[:32] + c + m[1120 + 16 :])

    def talkative() -> object:
        """An honest key, an authentic message 2, but a payload over the limit."""
        initiator = Initiator(HELLO)
        noise = HandshakeState(
            parse_protocol(Suite.NX.noise_name),
            initiator=False,
            prologue=b"splitglm/1" + HELLO.encode(),
            static=NODE.private,
        )
        noise.read_message(initiator.first_message()[HELLO_BYTES:])
        return initiator.finish(noise.write_message(bytes(MANIFEST_BYTES + 1)))

    yield "authentic message 2 with too large a payload", talkative

    def hostile_static(point: bytes) -> Attack:
        """A responder whose static key is a low-order point: the DH with it would be known to all."""

        class Posing:
            def public_key(self) -> Posing:
                return self

            def public_bytes_raw(self) -> bytes:
                return point

            def exchange(self, _: object) -> bytes:
                return bytes(32)

        def attack() -> object:
            initiator = Initiator(HELLO)
            message = initiator.first_message()
            noise = HandshakeState(
                parse_protocol(Suite.NX.noise_name),
                initiator=False,
                prologue=b"splitglm/1" + HELLO.encode(),
                static=Posing(),  # type: ignore[arg-type]
            )
            noise.read_message(message[HELLO_BYTES:])
            return initiator.finish(noise.write_message(b""))

        return attack

    for index, point in enumerate(LOW_ORDER):
        yield f"static key is low-order point {index}", hostile_static(point)


def wrong_party() -> Cases:
    """Wrong codes, wrong suites, replays and mixtures of sessions."""
    for name, theirs in (("another", bytes(32)), ("one bit off", bytes([PSK[0] ^ 1]) + PSK[1:])):
        yield f"psk: {name} at the cloud", lambda t=theirs: run(PSK_HELLO, psk=PSK, server_psk=t)
        yield f"psk: {name} at the device", lambda t=theirs: run(PSK_HELLO, psk=t, server_psk=PSK)
    yield "device without a code at a cloud that asks for one", lambda: run(server_psk=PSK)
    yield "device with a code at a cloud without one", lambda: run(PSK_HELLO, psk=PSK)

    keys_at = PSK_HELLO.suite.opening_bytes

    def downgraded() -> object:
        return run(PSK_HELLO, psk=PSK, first=lambda m: HELLO.encode() + m[keys_at : keys_at + 1216])

    yield "suite byte set back to NX by a proxy", downgraded

    def reply_to_another() -> object:
        responder, initiator = Responder(NODE), Initiator(HELLO)
        responder.accept(Initiator(HELLO).first_message())
        initiator.first_message()
        return initiator.finish(responder.reply(b"")[0])

    yield "reply to another device", reply_to_another

    def reflected() -> object:
        initiator = Initiator(HELLO)
        return initiator.finish(initiator.first_message())

    yield "own message 1 sent back", reflected

    def mixed(cut: int) -> Attack:
        def attack() -> object:
            initiator = Initiator(HELLO)
            message = initiator.first_message()
            replies = []
            for node in (NODE, NodeKey.generate()):
                responder = Responder(node)
                responder.accept(message)
                replies.append(responder.reply(b"same")[0])
            return initiator.finish(replies[0][:cut] + replies[1][cut:])

        return attack

    for cut in (32, 1136, 1184):
        yield f"two nodes' replies joined at {cut}", mixed(cut)

    def impostor() -> object:
        """Knows the node's public key, not the private one."""

        class Posing:
            private = X25519PrivateKey.generate()

            def public_key(self) -> Posing:
                return self

            def public_bytes_raw(self) -> bytes:
                return NODE.public

            def exchange(self, peer: object) -> bytes:
                return self.private.exchange(peer)  # type: ignore[arg-type]

        initiator = Initiator(HELLO)
        noise = HandshakeState(
            parse_protocol(Suite.NX.noise_name),
            initiator=False,
            prologue=b"splitglm/1" + HELLO.encode(),
            static=Posing(),  # type: ignore[arg-type]
        )
        noise.read_message(initiator.first_message()[HELLO_BYTES:])
        return initiator.finish(noise.write_message(b""))

    yield "node's public key without its private key", impostor


GROUPS = (edited_hellos, edited_messages, lengths, bad_keys, wrong_party)


def test_the_proxy_that_changes_nothing_is_no_obstacle() -> None:
    """The control: what the cases below break works when left alone."""
    assert run().payload == b"manifest"
    assert run(PSK_HELLO, psk=PSK, server_psk=PSK).remote_static == NODE.public


def test_every_hostile_handshake_fails_alike() -> None:
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    for group in GROUPS:
        for name, attack in group():
            with pytest.raises((SecurityError, VersionMismatch)) as refused:
                attack()
                pytest.fail(f"accepted: {name}")
            error = refused.value
            if isinstance(error, VersionMismatch):  # the one thing that a peer may learn
                assert name.startswith(("hello byte 4 ", "psk hello byte 4 ")), name
            else:
                assert type(error) is SecurityError and error.args == ("secure channel failed",), name
            assert error.__context__ is None and error.__cause__ is None, name
            assert name not in seen
            seen.add(name)
            counts[group.__name__] += 1
    print(f"hostile handshakes refused: {sum(counts.values())} {dict(counts)}")
    assert sum(counts.values()) >= 600, counts


def test_a_changed_kem_ciphertext_in_the_psk_suite_fails_too() -> None:
    for offset in range(32, 1136, 23):
        with pytest.raises(SecurityError):
            run(PSK_HELLO, psk=PSK, server_psk=PSK, second=flip(offset, 3))


def test_a_wrong_code_is_noticed_by_the_cloud_before_it_answers() -> None:
    """A guesser gets one try per handshake and learns only that it failed."""
    responder = Responder(NODE, psks=PskRing([PSK]))
    with pytest.raises(SecurityError):
        responder.accept(Initiator(PSK_HELLO, psk=bytes(32)).first_message())
    assert responder.psk_number is None


def test_who_replays_a_first_message_can_neither_read_the_answer_nor_go_on() -> None:
    """The hint is recognised, for it says which key is meant and nothing about who speaks."""
    message = Initiator(PSK_HELLO, psk=PSK).first_message()
    replay = Responder(NODE, psks=PskRing([bytes(32), PSK]))
    replay.accept(message)
    assert replay.psk_number == 1
    answer, cloud = replay.reply(b"manifest")
    for psk in (bytes(32), PSK):  # even with the code: the ephemeral keys are not those of the recording
        other = Initiator(PSK_HELLO, psk=psk)
        other.first_message()
        with pytest.raises(SecurityError):
            other.finish(answer)
    with pytest.raises(SecurityError):
        cloud.channel.open(bytes(20) + bytes(16))
