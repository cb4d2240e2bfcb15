"""Frames that wait: bounded, whatever the cloud sends."""

from __future__ import annotations

import queue

import pytest

from splitglm_core.errors import ProtocolError
from splitglm_edge.inbox import MAX_BYTES, MAX_FRAMES, Inbox
from splitglm_wire.frames import Ended
from splitglm_wire.limits import MAX_GENERATE


def test_what_was_put_comes_out_in_order_and_makes_room() -> None:
    inbox = Inbox(max_frames=2, max_bytes=100)
    for round_ in range(5):
        inbox.put(Ended(handle=round_), 60)
        inbox.put(Ended(handle=round_ + 100), 40)
        assert inbox.get(timeout=1)[:2] == (Ended(handle=round_), 60)
        assert inbox.get_nowait()[:2] == (Ended(handle=round_ + 100), 40)
    with pytest.raises(queue.Empty):
        inbox.get_nowait()
    inbox.end()
    assert inbox.get(timeout=1) is None


def test_beyond_either_bound_nothing_is_kept() -> None:
    few = Inbox(max_frames=2)
    few.put(Ended(handle=1), 1)
    few.put(Ended(handle=2), 1)
    with pytest.raises(ProtocolError):
        few.put(Ended(handle=3), 1)
    small = Inbox(max_bytes=100)
    small.put(Ended(handle=1), 60)
    with pytest.raises(ProtocolError):
        small.put(Ended(handle=2), 41)
    small.put(Ended(handle=3), 40)
    small.end()  # that it is over is always told
    first, second, end = (small.get(timeout=1) for _ in range(3))
    assert (first[:2], second[:2], end) == ((Ended(handle=1), 60), (Ended(handle=3), 40), None)
    assert first.at_s <= second.at_s


def test_the_longest_reply_fits_unread() -> None:
    assert MAX_FRAMES > MAX_GENERATE and MAX_BYTES > MAX_GENERATE * 200
