"""When a waiting device takes its cloud for gone, and how it gets it back, by the agent's own rules and timeouts

The rules are those of ``splitglm_edge.liveness`` (a ping after a third of the silence that is allowed, and two thirds
for its answer), of ``connection`` (a handshake of three round trips) and of ``remote`` (what was sent is not lost when
the cloud is reached again).
"""

from __future__ import annotations

from typing import Final

from splitglm_edge.timeouts import Timeouts
from splitglm_sims.world.link import Link

TIMEOUTS: Final = Timeouts()
PING_BYTES: Final = 64  # one frame, as small as frames are
_HANDSHAKE_ROUND_TRIPS: Final = 3
_SLOW_ROUND_TRIPS: Final = 12  # a handshake that takes longer has failed, if the cloud was there before


def pong_s(link: Link, asked_s: float, rtt_s: float) -> float:
    """When the answer to a ping would be there, if the device asks at ``asked_s``."""
    arrived_s = link.up.finish_s(max(asked_s, link.up.free_s), PING_BYTES) + rtt_s / 2
    return link.down.finish_s(arrived_s, PING_BYTES) + rtt_s / 2


def lost_s(
    link: Link, *, heard_s: float, waits_from_s: float, answer_s: float, expected_s: float, rtt_s: float
) -> float | None:
    """When the device gives up waiting for an answer that would come at ``answer_s``; None when it does not.

    Args:
        heard_s: when it last heard of the cloud.
        expected_s: when what it sent should have arrived there.
    """
    gives_up_s = waits_from_s + TIMEOUTS.step_s
    silence_s = TIMEOUTS.silence_s
    until_s = min(answer_s, gives_up_s)
    while True:
        asked_s = max(waits_from_s, heard_s + silence_s / 3)
        if asked_s >= until_s:
            break
        pong = pong_s(link, asked_s, rtt_s)
        deadly_s = max(asked_s, expected_s) + 2 * silence_s / 3
        if min(pong, until_s) > deadly_s:
            return deadly_s
        heard_s = pong
    return gives_up_s if answer_s > gives_up_s else None


def reached_s(link: Link, from_s: float, rtt_s: float) -> float:
    """When a handshake begun at ``from_s`` would be through, were there no timeout."""
    at_s = from_s
    for _ in range(_HANDSHAKE_ROUND_TRIPS):
        arrived_s = link.up.finish_s(at_s, PING_BYTES) + rtt_s / 2
        at_s = link.down.finish_s(arrived_s, PING_BYTES) + rtt_s / 2
    return at_s


def handshake_timeout_s(believed_rtt_s: float) -> float:
    """How long the device tries to connect again to a cloud that it knew."""
    return min(TIMEOUTS.connect_s, max(TIMEOUTS.silence_s, _SLOW_ROUND_TRIPS * believed_rtt_s))


def recovery(link: Link, lost_at_s: float, rtt_s: float, believed_rtt_s: float, stranded: bool) -> tuple[float, float]:
    """When the device gives the cloud up for good, and when it would have it again.

    Args:
        stranded: nothing else can finish the reply, so its return is worth waiting for.
    """
    patience_s = TIMEOUTS.rejoin_s if stranded else handshake_timeout_s(believed_rtt_s)
    return lost_at_s + patience_s, reached_s(link, lost_at_s, rtt_s)
