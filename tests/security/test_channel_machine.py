"""A pair of channels against a model: whatever honest ends do and whatever the network does to records in flight."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from splitglm_core.errors import InternalError, SecurityError
from splitglm_security.channel import Channel, Kind
from splitglm_security.limits import HEADER_BYTES

SIDES = st.sampled_from([0, 1])


class ChannelPair(RuleBasedStateMachine):
    """``sent[side]`` holds what that side sealed and the other has not opened: (record, kind, payload)."""

    def __init__(self) -> None:
        super().__init__()

        def end(initiator: bool) -> Channel:
            keys = (b"a" * 32, b"b" * 32)
            return Channel(initiator=initiator, keys=keys, handshake_hash=b"h" * 32, prologue=b"p")

        self.ends = (end(True), end(False))
        self.sent: tuple[deque[tuple[bytes, Kind, bytes]], ...] = (deque(), deque())
        self.delivered: list[list[bytes]] = [[], []]
        self.closed = [False, False]  # the sending direction of that side
        self.got_fin = [False, False]
        self.dead = [False, False]
        self.epochs = [0, 0]
        self.nonces: set[tuple[int, bytes]] = set()

    def _emit(self, side: int, record: bytes, kind: Kind, payload: bytes) -> None:
        place = (side, record[4:16])
        assert place not in self.nonces, "a nonce was used twice"
        self.nonces.add(place)
        assert payload not in record or len(payload) < 8
        self.sent[side].append((record, kind, payload))

    @rule(side=SIDES, payload=st.binary(max_size=200))
    def seal(self, side: int, payload: bytes) -> None:
        if self.closed[side]:
            with pytest.raises(InternalError):
                self.ends[side].seal(payload)
        elif self.dead[side]:
            with pytest.raises(SecurityError):
                self.ends[side].seal(payload)
        else:
            self._emit(side, self.ends[side].seal(payload), Kind.DATA, payload)

    @rule(side=SIDES)
    def key_update(self, side: int) -> None:
        if not self.closed[side] and not self.dead[side]:
            record = self.ends[side].key_update()
            assert record[4:8] == self.epochs[side].to_bytes(4, "big")
            self.epochs[side] += 1
            self._emit(side, record, Kind.KEY_UPDATE, b"")

    @rule(side=SIDES)
    def close(self, side: int) -> None:
        if not self.closed[side] and not self.dead[side]:
            self._emit(side, self.ends[side].close(), Kind.FIN, b"")
            self.closed[side] = True

    @rule(side=SIDES)
    def deliver(self, side: int) -> None:
        to = 1 - side
        if not self.sent[side] or self.dead[to]:
            return
        record, kind, payload = self.sent[side].popleft()
        opened = self.ends[to].open(record)
        assert (opened.kind, bytes(opened.payload)) == (kind, payload)
        self.delivered[to].append(record)
        self.got_fin[to] = self.got_fin[to] or kind is Kind.FIN

    def _refused(self, to: int, record: bytes) -> None:
        with pytest.raises(SecurityError):
            self.ends[to].open(record)
        self.dead[to] = True

    @precondition(lambda self: any(self.sent))
    @rule(side=SIDES, data=st.data())
    def corrupt(self, side: int, data: st.DataObject) -> None:
        if self.sent[side]:
            record = bytearray(self.sent[side][0][0])
            record[data.draw(st.integers(0, len(record) - 1))] ^= data.draw(st.integers(1, 255))
            self._refused(1 - side, bytes(record))

    @precondition(lambda self: any(len(queue) > 1 for queue in self.sent))
    @rule(side=SIDES, data=st.data())
    def skip_ahead(self, side: int, data: st.DataObject) -> None:
        if len(self.sent[side]) > 1:
            later = data.draw(st.integers(1, len(self.sent[side]) - 1))
            self._refused(1 - side, self.sent[side][later][0])

    @precondition(lambda self: any(self.delivered))
    @rule(side=SIDES, data=st.data())
    def replay(self, side: int, data: st.DataObject) -> None:
        if self.delivered[side]:
            self._refused(side, data.draw(st.sampled_from(self.delivered[side])))

    @precondition(lambda self: any(self.sent))
    @rule(side=SIDES)
    def reflect(self, side: int) -> None:
        if self.sent[side]:
            self._refused(side, self.sent[side][0][0])

    @rule(side=SIDES, noise=st.binary(max_size=HEADER_BYTES + 40))
    def inject(self, side: int, noise: bytes) -> None:
        self._refused(side, noise)

    @rule(side=SIDES)
    def transport_ends(self, side: int) -> None:
        if self.got_fin[side]:
            self.ends[side].finish()
        else:
            with pytest.raises(SecurityError):
                self.ends[side].finish()
            self.dead[side] = True

    @invariant()
    def the_dead_stay_dead(self) -> None:
        for side in (0, 1):
            if self.dead[side]:
                assert not self.ends[side]._sender.alive and not self.ends[side]._receiver.alive
                assert not any(self.ends[side]._sender._secret) and not any(self.ends[side]._receiver._secret)


TestChannelPair = ChannelPair.TestCase
TestChannelPair.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
