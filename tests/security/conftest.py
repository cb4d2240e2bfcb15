"""Factories for two connected ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from splitglm_security.channel import Channel
from splitglm_security.handshake import Established, Hello, Initiator, Responder, Suite
from splitglm_security.keys import NodeKey
from splitglm_security.limits import KEY_LIMITS, KeyLimits
from splitglm_security.psk_ring import PskRing

Pair = tuple[Channel, Channel]


def make_channels(
    tag: int = 0, *, prologue: bytes = b"prologue", max_record: int = 1 << 20, limits: KeyLimits = KEY_LIMITS
) -> Pair:
    """Two channels as after a handshake whose secrets follow from ``tag``: quick, and the same each time."""

    def end(initiator: bool) -> Channel:
        return Channel(
            initiator=initiator,
            keys=(bytes([tag, 1]) * 16, bytes([tag, 2]) * 16),
            handshake_hash=bytes([tag, 3]) * 16,
            prologue=prologue,
            max_record=max_record,
            limits=limits,
        )

    return end(True), end(False)


@pytest.fixture(scope="session")
def channels() -> Callable[..., Pair]:
    return make_channels


@pytest.fixture(scope="session")
def node_key() -> NodeKey:
    return NodeKey.generate()


@pytest.fixture(scope="session")
def hello() -> Hello:
    return Hello(suite=Suite.NX, model_fingerprint=bytes(range(32)), features=5)


@pytest.fixture(scope="session")
def psk_hello() -> Hello:
    return Hello(suite=Suite.NX_PSK, model_fingerprint=bytes(range(32)), features=5)


@pytest.fixture(scope="session")
def connect(node_key: NodeKey) -> Callable[..., tuple[Established, Established]]:
    """A real handshake: (device's end, cloud's end)."""

    def run(hello: Hello, *, psk: bytes | None = None, payload: bytes = b"manifest") -> tuple[Established, Established]:
        ring = None if psk is None else PskRing([psk])
        initiator, responder = Initiator(hello, psk=psk), Responder(node_key, psks=ring)
        responder.accept(initiator.first_message())
        message, cloud = responder.reply(payload)
        return initiator.finish(message), cloud

    return run
