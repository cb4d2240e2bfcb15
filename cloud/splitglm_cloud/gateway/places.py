"""Places for streams: so many at once, and so many of one peer. Used before anything is known of who asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from urllib.parse import unquote

from splitglm_core.errors import Overloaded
from splitglm_security.admission import peer_name


class Places:
    """Counts who is in. Devices on this machine share one address, so only the total bounds them.

    Args:
        total: places in all.
        per_peer: of these, for one peer that is not on this machine.
        what: what is counted, for the refusal.
    """

    def __init__(self, *, total: int, per_peer: int, what: str) -> None:
        self._total = total
        self._per_peer = per_peer
        self._what = what
        self._of_peer: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        return self._of_peer.total()

    @contextmanager
    def taken_by(self, peer: str) -> Iterator[None]:
        """Hold a place for ``peer`` (a ``peer_of``).

        Raises:
            Overloaded: there is none.
        """
        limit = self._total if is_here(peer) else self._per_peer
        if self.taken >= self._total or self._of_peer[peer] >= limit:
            raise Overloaded(f"too many {self._what}", code="OVERLOADED", retry_after_s=1.0)
        self._of_peer[peer] += 1
        try:
            yield
        finally:
            self._of_peer[peer] -= 1
            self._of_peer += Counter()  # forgets peers without places


def peer_of(address: str) -> str:
    """Who counts as one peer, from what gRPC says: ``ipv4:1.2.3.4:5678``, ``ipv6:%5B2001:db8::1%5D:5678`` (a URI).

    Its ports must not multiply a peer's allowance.
    """
    return peer_name(unquote(address).rpartition(":")[0] or address)


def is_here(peer: str) -> bool:
    """Whether a peer (a ``peer_of``) is on this machine."""
    if peer in ("::/64", "unix"):  # the network of ::1, and sockets of this machine
        return True
    try:
        return ip_address(peer).is_loopback
    except ValueError:
        return False
