"""What a server does before it spends cryptography on a stranger, cheapest first.

Order: exact length and hello of message 1, token bucket of the peer, places for half-open handshakes. Only then the
handshake itself (about 0.2 ms). A handshake is half open from ``admit`` until the peer's first record has opened, which
is when it first proves to be more than a replayed message 1.

Time is an argument: monotonic seconds. All calls may come from several threads.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Network, ip_address
from threading import Lock

from splitglm_core.errors import Overloaded, SecurityError
from splitglm_security.hello import Hello, peek_hello
from splitglm_security.limits import (
    ADDRESS_CHARACTERS,
    HALF_OPEN_DEADLINE_S,
    HALF_OPEN_PER_PEER,
    HALF_OPEN_TOTAL,
    HANDSHAKE_BURST,
    HANDSHAKES_PER_PEER_PER_S,
    PEER_TABLE_ENTRIES,
)


def peer_name(address: str) -> str:
    """Who counts as one peer: an IPv4 address, or the /64 network of an IPv6 address, which one customer owns whole.

    Args:
        address: without port; IPv6 in brackets or not, ``ipv4:`` or ``ipv6:`` before it or not. What is not an IP
            address counts as written.
    """
    plain = address.removeprefix("ipv4:").removeprefix("ipv6:")
    try:
        ip = ip_address(plain.partition("%")[0].strip("[]"))
    except ValueError:
        return address[:ADDRESS_CHARACTERS]
    if isinstance(ip, IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(IPv6Network((ip, 64), strict=False))


class TokenBuckets:
    """One token bucket per peer in a table of bounded size; the peer not seen for longest is forgotten first.

    A forgotten peer starts again with a full bucket, so whoever owns more addresses than the table has entries is
    bounded by the half-open places alone.
    """

    def __init__(
        self,
        *,
        rate_per_s: float = HANDSHAKES_PER_PEER_PER_S,
        burst: int = HANDSHAKE_BURST,
        entries: int = PEER_TABLE_ENTRIES,
    ) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._entries = entries
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # peer -> tokens, as of s

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, peer: str, now_s: float) -> float:
        """Take one token. Returns 0, or the seconds until there will be one."""
        tokens, as_of_s = self._buckets.pop(peer, (float(self._burst), now_s))
        # A clock that goes back must not make tokens.
        now_s = max(now_s, as_of_s)
        tokens = min(float(self._burst), tokens + (now_s - as_of_s) * self._rate_per_s)
        wait_s = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self._rate_per_s
        self._buckets[peer] = (tokens - 1.0 if wait_s == 0.0 else tokens, now_s)
        if len(self._buckets) > self._entries:
            self._buckets.popitem(last=False)
        return wait_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One half-open handshake.

    Attributes:
        number: unique in this process.
        peer: ``peer_name`` of its address.
        deadline_s: when the place is lost.
        hello: what the peer proposed; not authenticated yet.
    """

    number: int
    peer: str
    deadline_s: float
    hello: Hello


class Admission:
    """The gate in front of ``Responder.accept``."""

    def __init__(
        self,
        *,
        buckets: TokenBuckets | None = None,
        half_open: int = HALF_OPEN_TOTAL,
        half_open_per_peer: int = HALF_OPEN_PER_PEER,
        deadline_s: float = HALF_OPEN_DEADLINE_S,
    ) -> None:
        self._buckets = TokenBuckets() if buckets is None else buckets
        self._places = half_open
        self._places_per_peer = half_open_per_peer
        self._deadline_s = deadline_s
        self._open: OrderedDict[int, Ticket] = OrderedDict()  # in order of deadline
        self._of_peer: Counter[str] = Counter()
        self._next = 0
        self._now_s = float("-inf")
        self._lock = Lock()

    @property
    def half_open(self) -> int:
        """Places in use, those past their deadline included until the next call with a time."""
        return len(self._open)

    def admit(self, peer: str, message: bytes, now_s: float) -> Ticket:
        """Let a handshake in, or refuse it at once.

        Args:
            peer: address without port, as the transport gives it.
            message: message 1.

        Raises:
            VersionMismatch, SecurityError: the message is not a message 1 (``peek_hello``).
            Overloaded: too many from this peer, or too many at all; with ``retry_after_s``.
        """
        hello = peek_hello(message)
        peer = peer_name(peer)
        with self._lock:
            self._expire(now_s)
            wait_s = self._buckets.take(peer, self._now_s)
            if wait_s > 0.0:
                raise _busy("too many handshakes from one address", wait_s)
            if len(self._open) >= self._places or self._of_peer[peer] >= self._places_per_peer:
                first = next(iter(self._open.values()))
                raise _busy("too many half-open handshakes", max(0.0, first.deadline_s - self._now_s))
            ticket = Ticket(number=self._next, peer=peer, deadline_s=self._now_s + self._deadline_s, hello=hello)
            self._next += 1
            self._open[ticket.number] = ticket
            self._of_peer[peer] += 1
            return ticket

    def complete(self, ticket: Ticket, now_s: float) -> None:
        """The peer's first record opened: free the place.

        Raises:
            SecurityError: the deadline had passed; the session must end.
        """
        with self._lock:
            self._expire(now_s)
            if not self._remove(ticket):
                raise SecurityError()

    def abandon(self, ticket: Ticket) -> None:
        """The handshake failed or the stream ended: free the place. Harmless if it is free already."""
        with self._lock:
            self._remove(ticket)

    def expire(self, now_s: float) -> tuple[Ticket, ...]:
        """Tickets whose deadline has passed since the last call with a time; the service ends their streams."""
        with self._lock:
            return self._expire(now_s)

    def _expire(self, now_s: float) -> tuple[Ticket, ...]:
        self._now_s = max(self._now_s, now_s)
        late: list[Ticket] = []
        for ticket in self._open.values():
            if ticket.deadline_s > self._now_s:
                break
            late.append(ticket)
        for ticket in late:
            self._remove(ticket)
        return tuple(late)

    def _remove(self, ticket: Ticket) -> bool:
        if self._open.pop(ticket.number, None) is None:
            return False
        self._of_peer[ticket.peer] -= 1
        if self._of_peer[ticket.peer] <= 0:
            del self._of_peer[ticket.peer]
        return True


def _busy(what: str, retry_after_s: float) -> Overloaded:
    return Overloaded(what, "wait and connect again", code="OVERLOADED", retry_after_s=retry_after_s)
