"""What the ``Rebuilder`` answers: orders for the executor and events for the sessions. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field

from splitglm_cloud.engine.events import Event, Owner
from splitglm_wire.actions import Abort, Configure, Cut, Drop, Submit

_NOBODY = Owner()
Command = Configure | Submit | Abort | Cut | Drop


@dataclass(frozen=True, slots=True)
class Order:
    """One command for the executor.

    Attributes:
        owner: whose session it is; of a ``Configure`` only.
    """

    session: int
    action: Command
    owner: Owner = _NOBODY


@dataclass(frozen=True, slots=True)
class Reaction:
    """Orders for the executor, then events for the sessions, both in order."""

    orders: list[Order] = field(default_factory=list)
    events: list[tuple[int, Event]] = field(default_factory=list)
