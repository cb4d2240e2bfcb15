"""The carousel: which rows run through which layers next. Pure: no clock, no tensors, no I/O; work in, segments out.

The engine sweeps over the layers in order, again and again. A work boards when the sweep is at its first layer, also
when the sweep is already under way, and alights after its last; so works that enter the model at different layers
share the batches of the layers they have in common. Batching anew at every step is continuous batching (Yu et al.,
"Orca", OSDI 2022); boarding at any layer is ours.

**Nobody starves.** Of the works of one kind (decode or prefill), let ``X`` have waited ``max_wait_s`` and ``A`` older
ones wait then too, none of more than ``r`` rows. ``X`` boards in one of the first ``1 + A // c`` sweeps that begin
after that, with ``c = max(1, min_decode_rows // r)`` for decode and ``c = 1`` for prefill. See ``SweepLimits`` for the
shares that make it so, and ``boarding.plan`` for the order of those that have waited less.
"""

from __future__ import annotations

import math
from dataclasses import replace

from splitglm_cloud.engine.boarding import Domain, Places, Room, SweepLimits, Waiting, part, plan
from splitglm_cloud.engine.fairness import VirtualService
from splitglm_cloud.engine.work import Segment, Work
from splitglm_core.criticality import Criticality
from splitglm_core.errors import InternalError
from splitglm_core.ranges import LayerRange

__all__ = ["Carousel", "SweepLimits"]


class Carousel:
    """Waiting works, riders, and the position of the sweep. At most one work per session, one segment out at a time.

    Times are the caller's, in seconds, and never go back.
    """

    def __init__(self, *, limits: SweepLimits | None = None) -> None:
        self._limits = limits or SweepLimits()
        self._waiting: dict[int, Waiting] = {}
        self._kinds: dict[bool, dict[int, Waiting]] = {True: {}, False: {}}  # by decode, in order of arrival
        self._waiting_rows = {True: 0, False: 0}
        self._stops: dict[int, dict[int, Waiting]] = {}  # by boarding layer
        self._riders: dict[int, tuple[Work, bool]] = {}  # in order of boarding
        self._services: dict[Domain, VirtualService] = {}
        self._places = Places()
        self._passed: set[int] = set()  # waiting works that this sweep has no room for
        self._out: Segment | None = None
        self._idle = True  # the next work begins a sweep, wherever the last one ended
        self._order = 0
        self._soonest_deadline_s = math.inf
        self._position = 0
        self._sweeps = 0
        self._sweep_began_s = -math.inf

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting_rows(self) -> int:
        return sum(self._waiting_rows.values())

    @property
    def riding(self) -> int:
        return len(self._riders)

    @property
    def position(self) -> int:
        """The layer that the sweep computes next."""
        return self._position

    @property
    def sweeps(self) -> int:
        """Sweeps begun."""
        return self._sweeps

    @property
    def sweep_began_s(self) -> float:
        """When the newest of them began: whoever boards now has since waited for it to come round."""
        return self._sweep_began_s

    def add(self, work: Work, now_s: float) -> None:
        """Let ``work`` wait for its layer. A session's next work comes only after its last one has left."""
        if work.session in self._waiting or work.session in self._riders:
            raise InternalError(f"session {work.session} already has work")
        if work.rows < 1 or not len(work.layers) or not 0 < work.weight < math.inf:
            raise InternalError(f"work of {work.rows} rows, layers {work.layers} and weight {work.weight} cannot be")
        self._order += 1
        whole = work.decode and work.rows <= self._limits.max_decode_rows
        entry = Waiting(work, whole, now_s, self._order)
        self._waiting[work.session] = self._kinds[whole][work.session] = entry
        self._waiting_rows[whole] += work.rows
        self._stops.setdefault(work.layers.start, {})[work.session] = entry
        self._soonest_deadline_s = min(self._soonest_deadline_s, work.deadline_s)

    def remove(self, session: int) -> bool:
        """Forget a session's work, waiting or riding (also while its segment is out); True when there was some."""
        known = self._leave_queue(session) is not None or self._riders.pop(session, None) is not None
        if known:
            self._passed.clear()
        return known

    def expire(self, now_s: float) -> tuple[Work, ...]:
        """Remove and return the waiting works whose deadline has passed, oldest first."""
        if now_s <= self._soonest_deadline_s:
            return ()
        late = tuple(entry.work for entry in self._waiting.values() if entry.work.deadline_s < now_s)
        for work in late:
            self.remove(work.session)
        self._soonest_deadline_s = min((entry.work.deadline_s for entry in self._waiting.values()), default=math.inf)
        return late

    def next_segment(self, now_s: float) -> Segment | None:
        """Board what may board here and return the next batch; None when there is no work.

        The caller reports ``finished`` for it before it asks again.
        """
        if self._out is not None:
            raise InternalError("a segment is out already")
        if not self._idle:
            self._board()
        while not self._riders:
            if not self._waiting:
                self._idle = True
                return None
            stop = None if self._idle else self._next_stop()
            if stop is None:
                self._begin_sweep(now_s)
            else:
                self._position = stop
            self._board()
        works = tuple(work for work, _ in self._riders.values())
        stop = min(work.layers.stop for work in works)
        stop = min(stop, self._position + self._limits.stride_layers)
        boarding = self._next_stop()
        if boarding is not None:
            stop = min(stop, boarding)
        self._out = Segment(LayerRange(self._position, stop), works)
        return self._out

    def finished(self, segment: Segment) -> tuple[Work, ...]:
        """The segment has run: advance, and return the works that alight, in rider order. They are known no longer."""
        if segment is not self._out:
            raise InternalError("a segment finished that was not out")
        self._out = None
        self._position = segment.layers.stop
        alighting = []
        for work in segment.riders:
            rider = self._riders.get(work.session)
            if rider is not None and rider[0] is work and work.layers.stop == self._position:
                del self._riders[work.session]
                alighting.append(work)
        return tuple(alighting)

    def waiting_by_class(self) -> tuple[int, int, int, int]:
        """Waiting works of each criticality, the most critical first."""
        counts = dict.fromkeys(Criticality, 0)
        for entry in self._waiting.values():
            counts[entry.work.criticality] += 1
        first, second, third, fourth = counts.values()
        return first, second, third, fourth

    def oldest_wait_s(self, now_s: float) -> float:
        """How long the oldest waiting work has waited; 0 when none waits."""
        return next((now_s - entry.added_s for entry in self._waiting.values()), 0.0)

    def check_integrity(self) -> None:
        """Raise when the tables disagree, a rider is not where the sweep is, or a limit is broken."""
        for index in (self._kinds.values(), self._stops.values()):
            if sorted(session for entries in index for session in entries) != sorted(self._waiting):
                raise InternalError("the carousel's tables of waiting work disagree")
        for whole, entries in self._kinds.items():
            if self._waiting_rows[whole] != sum(entry.work.rows for entry in entries.values()):
                raise InternalError("the carousel's sums of waiting rows disagree")
        if self._waiting.keys() & self._riders.keys() or not self._places.rows.keys() <= self._waiting.keys():
            raise InternalError("a work of the carousel is in two places")
        works = [work for work, _ in self._riders.values()]
        if any(self._position not in work.layers for work in works):
            raise InternalError("a rider is not where the sweep is")
        if sum(work.rows for work in works) > self._limits.max_rows:
            raise InternalError("more rows are aboard than the limit allows")

    def _next_stop(self) -> int | None:
        """The nearest layer ahead where a work may board in this sweep."""
        ahead = [layer for layer in self._stops if layer > self._position]
        if self._passed:
            ahead = [layer for layer in ahead if not self._stops[layer].keys() <= self._passed]
        return min(ahead, default=None)

    def _begin_sweep(self, now_s: float) -> None:
        """With nobody aboard: go to the first boarding layer and give out the places of the whole sweep."""
        self._settle()
        self._sweeps += 1
        self._sweep_began_s = now_s
        self._position = min(self._stops)
        self._idle = False
        self._passed.clear()
        if self._all_fit() and self.oldest_wait_s(now_s) < self._limits.max_wait_s:
            # Nobody need be chosen, but each keeps the place that it could have against those that arrive later.
            self._places = Places(rows={session: entry.work.rows for session, entry in self._waiting.items()})
            return
        room = self._room()
        decode, prefill = self._kinds[True].values(), self._kinds[False].values()
        for entry in self._waiting.values():
            if entry.domain not in self._services:
                self._services[entry.domain] = VirtualService()
        self._places = plan(decode, prefill, room=room, limits=self._limits, now_s=now_s, services=self._services)
        self._passed.update(self._waiting.keys() - self._places.rows.keys())

    def _settle(self) -> None:
        """The last sweep is over and charged: levels rise to those whom it left waiting."""
        for domain, tenants in self._places.contended.items():
            service = self._services[domain]
            present = {entry.work.tenant for entry in self._waiting.values() if entry.domain == domain}
            service.advance([service.of(tenant) for tenant in tenants], present)

    def _all_fit(self) -> bool:
        """Whether every waiting work fits beside the riders even if all were to ride at once."""
        aboard = {True: 0, False: 0}
        for work, whole in self._riders.values():
            aboard[whole] += work.rows
        decode, prefill = (aboard[whole] + self._waiting_rows[whole] for whole in (True, False))
        limits = self._limits
        beside = decode > 0
        most = limits.max_rows - limits.min_decode_rows
        if beside:
            most = min(most, limits.prefill_rows_beside_decode)
        return prefill <= most and decode + prefill <= limits.max_rows

    def _room(self) -> Room:
        """The room beside the riders."""
        tops = [entry.work.layers.stop for entry in self._waiting.values()]
        tops.extend(work.layers.stop for work, _ in self._riders.values())
        decode_aboard = any(whole for _, whole in self._riders.values())
        room = Room(
            self._limits,
            layers=max(tops),
            beside_decode=decode_aboard or bool(self._kinds[True]),
            beside_prefill=bool(self._kinds[False]),
        )
        for work, whole in self._riders.values():
            room.take(work.layers, work.rows, whole=whole)
        return room

    def _board(self) -> None:
        """Board the works of this layer: those with a place, then those for which there is still room."""
        here = self._stops.get(self._position)
        if not here:
            return
        if self._all_fit():
            for entry in list(here.values()):
                self._ride(entry, entry.work.rows)
            return
        room = self._room()
        closed: set[tuple[Domain, str]] = set()  # whoever comes after one of its own that finds no room waits too
        placed = [entry for entry in here.values() if entry.work.session in self._places.rows]
        for entry in placed:
            rows = self._places.rows[entry.work.session]
            if not entry.whole:  # decode may have arrived since the plan, which leaves less for prefill
                rows = self._part(entry, rows, room, closed)
                rows = max(rows, self._places.assured.get(entry.work.session, 0))
            self._ride(entry, rows, room)
        if not here:
            return
        for session, rows in self._places.rows.items():
            entry = self._waiting[session]
            if entry.work.layers.start > self._position:
                room.take(entry.work.layers, rows, whole=entry.whole)
        for entry in sorted(here.values(), key=self._rank):
            self._ride(entry, self._part(entry, entry.work.rows, room, closed), room)

    def _part(self, entry: Waiting, wanted: int, room: Room, closed: set[tuple[Domain, str]]) -> int:
        """Rows of ``entry`` that find room; none once an older work of its tenant, class and kind found none."""
        group = entry.domain, entry.work.tenant
        free = 0 if group in closed else room.free(entry.work.layers, whole=entry.whole)
        rows = part(entry, wanted, free, self._limits.min_prefill_rows)
        if not rows:
            closed.add(group)
        return rows

    def _rank(self, entry: Waiting) -> tuple[bool, Criticality, float, int]:
        """Order of boarding outside the plan: decode, then by class, tenant and arrival."""
        service = self._services.get(entry.domain)
        return not entry.whole, entry.work.criticality, service.of(entry.work.tenant) if service else 0.0, entry.order

    def _ride(self, entry: Waiting, rows: int, room: Room | None = None) -> None:
        if not rows:
            return
        work = entry.work
        self._leave_queue(work.session)
        if room is not None:
            room.take(work.layers, rows, whole=entry.whole)
        if entry.domain in self._places.contended:
            self._services[entry.domain].charge(work.tenant, entry.cost(rows))
        self._riders[work.session] = (work if rows == work.rows else replace(work, rows=rows)), entry.whole

    def _leave_queue(self, session: int) -> Waiting | None:
        entry = self._waiting.pop(session, None)
        if entry is None:
            return None
        del self._kinds[entry.whole][session]
        self._waiting_rows[entry.whole] -= entry.work.rows
        stop = self._stops[entry.work.layers.start]
        del stop[session]
        if not stop:
            del self._stops[entry.work.layers.start]
        self._places.rows.pop(session, None)
        self._places.assured.pop(session, None)
        self._passed.discard(session)
        return entry
