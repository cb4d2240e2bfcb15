"""The hint at a pairing: found by who holds the key, meaningless and unlinkable to everybody else."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitglm_core.errors import InputError, SecurityError
from splitglm_security.handshake import Hello, Initiator, Responder, Suite
from splitglm_security.hello import HELLO_BYTES
from splitglm_security.keys import NodeKey
from splitglm_security.limits import HINT_BYTES, PSK_RING_ENTRIES
from splitglm_security.psk_ring import PskRing, psk_hint

PSKS = [bytes([number]) * 32 for number in range(1, 21)]
RING = PskRing(PSKS)


def hint_of(message: bytes) -> bytes:
    return message[HELLO_BYTES : HELLO_BYTES + HINT_BYTES]


@pytest.mark.parametrize("number", [0, 7, 19])
def test_each_paired_device_is_served_under_its_own_key(number: int, node_key: NodeKey, psk_hello: Hello) -> None:
    initiator, responder = Initiator(psk_hello, psk=PSKS[number]), Responder(node_key, psks=RING)
    assert responder.psk_number is None
    responder.accept(initiator.first_message())
    assert responder.psk_number == number
    answer, cloud = responder.reply(b"manifest")
    device = initiator.finish(answer)
    assert device.payload == b"manifest"
    assert bytes(cloud.channel.open(device.channel.seal(b"first")).payload) == b"first"


def test_a_device_cannot_be_followed_by_its_hints(psk_hello: Hello) -> None:
    messages = [Initiator(psk_hello, psk=PSKS[0]).first_message() for _ in range(200)]
    hints = [hint_of(message) for message in messages]
    assert len(set(hints)) == 200
    # Half of the bits differ between two hints of one device, as between any two random strings.
    apart = [(int.from_bytes(a) ^ int.from_bytes(b)).bit_count() for a, b in pairwise(hints)]
    assert 60 < sum(apart) / len(apart) < 68
    # What stays the same in clear is the hello, and that is the same for every device of the model.
    assert {message[:HELLO_BYTES] for message in messages} == {psk_hello.encode()}


def test_a_hint_is_bound_to_all_that_is_said_in_clear() -> None:
    said = os.urandom(HELLO_BYTES + 32)
    hint = psk_hint(PSKS[3], said)
    assert len(hint) == HINT_BYTES and RING.find(hint, said) == 3
    for offset in range(len(said)):
        other = said[:offset] + bytes([said[offset] ^ 1]) + said[offset + 1 :]
        assert RING.find(hint, other) is None
    for bit in range(8 * HINT_BYTES):
        assert RING.find((int.from_bytes(hint) ^ 1 << bit).to_bytes(HINT_BYTES), said) is None


@given(st.integers(0, len(PSKS) - 1), st.binary(max_size=200))
def test_the_ring_finds_the_key_that_the_device_means_whatever_it_says(number: int, said: bytes) -> None:
    # The device computes HMAC in one go, the ring from hashes that it has prepared.
    assert RING.find(psk_hint(PSKS[number], said), said) == number


@given(st.binary(max_size=40))
def test_no_other_bytes_are_a_hint(hint: bytes) -> None:
    assert RING.find(hint, bytes(76)) is None


def test_a_hint_of_another_connection_is_refused(node_key: NodeKey, psk_hello: Hello) -> None:
    """Pasted before another ephemeral key, as who wants to pass for the tenant would have to."""
    recorded = Initiator(psk_hello, psk=PSKS[0]).first_message()
    own = Initiator(psk_hello, psk=bytes(32)).first_message()
    forged = own[:HELLO_BYTES] + hint_of(recorded) + own[HELLO_BYTES + HINT_BYTES :]
    with pytest.raises(SecurityError, match=r"^secure channel failed$"):
        Responder(node_key, psks=RING).accept(forged)


@pytest.mark.parametrize("hint", [bytes(HINT_BYTES), b"\xff" * HINT_BYTES, b""])
def test_an_unknown_or_missing_hint_fails_like_everything_else(
    hint: bytes, node_key: NodeKey, psk_hello: Hello
) -> None:
    message = Initiator(psk_hello, psk=PSKS[0]).first_message()
    changed = message[:HELLO_BYTES] + hint + message[HELLO_BYTES + HINT_BYTES :]
    with pytest.raises(SecurityError, match=r"^secure channel failed$") as error:
        Responder(node_key, psks=RING).accept(changed)
    assert error.value.__cause__ is None and error.value.__context__ is None


def test_a_device_without_a_pairing_is_refused_where_there_are_tenants(node_key: NodeKey, hello: Hello) -> None:
    assert hello.suite is Suite.NX
    with pytest.raises(SecurityError):
        Responder(node_key, psks=RING).accept(Initiator(hello).first_message())


@pytest.mark.parametrize(
    "psks", [[], [bytes(31)], [bytes(32), bytes(32)], [n.to_bytes(32) for n in range(PSK_RING_ENTRIES + 1)]]
)
def test_a_ring_holds_distinct_keys_within_bounds(psks: list[bytes]) -> None:
    with pytest.raises(InputError) as error:
        PskRing(psks)
    assert "\\x00" not in str(error.value)
