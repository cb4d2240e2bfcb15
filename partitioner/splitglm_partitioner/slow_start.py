"""Slow start: what a connection that rested loses before its window fills the link, and whether this link shows it.

A sender begins with ten segments (RFC 6928), again after a rest (RFC 5681, 4.1), and doubles what it may send with each
round trip until the link is full. Until then it waits for acknowledgements.
"""

from __future__ import annotations

from collections import deque

from splitglm_partitioner.change import median
from splitglm_partitioner.observations import Direction, Transfer
from splitglm_partitioner.rates import MAX_AGE_S, MIN_TRANSFER_BYTES
from splitglm_partitioner.round_trips import MIN_REST_S

INITIAL_WINDOW_BYTES = 14_600

_RATES = 4
_VERDICTS = 8
# Evidence before anything is said, and shares of the loss that slow start would explain: at least half of it at the
# median speaks for slow start, less than a quarter against, more than twice is something else.
_EVIDENCE_FROM = 2
_SEEN_SHARES = (0.5, 2.0)
_UNSEEN_SHARE = 0.25
# A loss below this share of the transfer drowns in the changes of its rate.
_LEAST_SHARE = 0.25


def rest_s(rtt_s: float) -> float:
    """A pause after which a sender may have to start slowly again."""
    return max(MIN_REST_S, 4.0 * rtt_s)


def stalled_s(transfer_bytes: int, bytes_per_s: float, rtt_s: float, window_bytes: int) -> float:
    """Seconds that a transfer waits for acknowledgements, its sender beginning with ``window_bytes`` > 0.

    Round ``i`` sends ``window_bytes * 2**i``; when that takes less than a round trip, the rest of it is lost.
    """
    lost_s, left = 0.0, transfer_bytes - window_bytes
    while left > 0 and window_bytes < bytes_per_s * rtt_s:
        lost_s += rtt_s - window_bytes / bytes_per_s
        window_bytes *= 2
        left -= window_bytes
    return lost_s


def corrected_s(transfer_bytes: int, seconds: float, rtt_s: float, window_bytes: int) -> float | None:
    """Seconds that the transfer would have taken on a full window; None when waiting alone explains ``seconds``.

    The rate solves ``seconds = bytes / rate + stalled_s(bytes, rate)``, which falls with the rate; it is linear in its
    inverse for a given number of stalls, so each number is tried.
    """
    stalls, sent, window = 0, 0, window_bytes
    while True:
        moving_s = seconds - stalls * rtt_s
        if moving_s <= 0.0:
            return None
        rate = (transfer_bytes - sent) / moving_s
        if sent + window >= transfer_bytes or rate * rtt_s <= window:
            return transfer_bytes / rate
        stalls, sent, window = stalls + 1, sent + window, 2 * window


class SlowStart:
    """Whether transfers after a rest lose what slow start says they lose.

    The rate is that of the transfers that did not start slowly; a link without any gives no verdict, since a slow rate
    looks the same. The window counts what was sent since the last rest: it grows by what is acknowledged.
    """

    def __init__(self) -> None:
        self._rates: dict[Direction, deque[tuple[float, float]]] = {way: deque(maxlen=_RATES) for way in Direction}
        self._shares: deque[float] = deque(maxlen=_VERDICTS)
        self._sent = dict.fromkeys(Direction, 0)
        self.seen = False

    def rested(self) -> None:
        """The link carried nothing for ``rest_s``: windows are small again."""
        self._sent = dict.fromkeys(Direction, 0)

    def window_bytes(self, way: Direction) -> int:
        """What a sender may send now before the first acknowledgement, slow start being there."""
        return INITIAL_WINDOW_BYTES + self._sent[way]

    def observe(self, transfer: Transfer, rtt_s: float) -> float | None:
        """Take a transfer; a rest before it was told by ``rested``.

        Returns:
            Its seconds, without the loss when this link shows slow start; None when they say nothing about the rate.
        """
        if transfer.transfer_bytes < MIN_TRANSFER_BYTES or transfer.seconds == 0.0:
            return transfer.seconds  # smaller than a window: it does not grow one
        way, size, seconds = transfer.direction, transfer.transfer_bytes, transfer.seconds
        window = self.window_bytes(way)
        self._sent[way] += size
        self._judge(transfer, rtt_s, window)
        return corrected_s(size, seconds, rtt_s, window) if self.seen else seconds

    def _judge(self, transfer: Transfer, rtt_s: float, window: int) -> None:
        size, seconds = transfer.transfer_bytes, transfer.seconds
        rates = self._rates[transfer.direction]
        fresh = [rate for at_s, rate in rates if transfer.at_s - at_s <= MAX_AGE_S]
        if stalled_s(size, size / seconds, rtt_s, window) == 0.0 and window > INITIAL_WINDOW_BYTES:
            rates.append((transfer.at_s, size / seconds))
            return
        if not fresh or window > INITIAL_WINDOW_BYTES:
            return
        rate = median(fresh)
        loss_s = stalled_s(size, rate, rtt_s, window)
        if loss_s < max(rtt_s / 2, _LEAST_SHARE * size / rate):
            return
        self._shares.append((seconds - size / rate) / loss_s)
        if len(self._shares) >= _EVIDENCE_FROM:
            share = median(self._shares)
            if _SEEN_SHARES[0] <= share <= _SEEN_SHARES[1]:
                self.seen = True
            elif share < _UNSEEN_SHARE or share > _SEEN_SHARES[1]:
                self.seen = False
