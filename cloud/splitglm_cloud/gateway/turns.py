"""Who may rebuild now: a loss of many sessions at once must not displace those that lost nothing. Pure."""

from __future__ import annotations

from collections import OrderedDict

from splitglm_core.criticality import Criticality


class Turns:
    """Sessions that rebuild, and those that wait for it: by class, in order of arrival within one.

    A session counts against its own class and those below, so work of a low class never holds up that of a higher one.
    Suspects (see ``Rebuilder``) have their turn one at a time and after the others of their class, so that the next
    loss of a worker tells which of them it was.

    Args:
        at_once: sessions that may rebuild at once, for each class those of a higher class included.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: dict[tuple[Criticality, bool], OrderedDict[int, None]] = {
            (criticality, suspect): OrderedDict() for criticality in Criticality for suspect in (False, True)
        }
        self._where: dict[int, tuple[Criticality, bool]] = {}  # of those that wait
        self._having: dict[int, tuple[Criticality, bool]] = {}

    def __contains__(self, session: int) -> bool:
        return session in self._where or session in self._having

    @property
    def waiting(self) -> int:
        return len(self._where)

    @property
    def having(self) -> int:
        return len(self._having)

    def ask(self, session: int, criticality: Criticality, *, suspect: bool) -> None:
        self.leave(session)
        self._where[session] = criticality, suspect
        self._waiting[criticality, suspect][session] = None

    def next(self) -> int | None:
        """The session whose turn it is now; it has its turn until it leaves."""
        probation = any(suspect for _, suspect in self._having.values())
        for kind, queue in self._waiting.items():
            above = sum(criticality <= kind[0] for criticality, _ in self._having.values())
            if queue and above < self._at_once and not (kind[1] and probation):
                session, _ = queue.popitem(last=False)
                self._having[session] = self._where.pop(session)
                return session
        return None

    def leave(self, session: int) -> None:
        """It has been rebuilt, or nobody wants it any more."""
        kind = self._where.pop(session, None)
        if kind is not None:
            del self._waiting[kind][session]
        self._having.pop(session, None)
