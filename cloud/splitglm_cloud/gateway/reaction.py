"""What the ``Rebuilder`` answers: orders for the executor and events for the sessions. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

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


class Rebuild(Enum):
    """How a rebuild goes, for whoever counts and times them."""

    BEGAN = "began"
    OK = "ok"
    FAILED = "failed"  # or given up; also told where none was under way
    LEFT = "left"  # to the device: the log of inputs does not reach


@dataclass(frozen=True, slots=True)
class Reaction:
    """Orders for the executor, then events for the sessions, both in order, and what became of rebuilds."""

    orders: list[Order] = field(default_factory=list)
    events: list[tuple[int, Event]] = field(default_factory=list)
    rebuilds: list[tuple[int, Rebuild]] = field(default_factory=list)
