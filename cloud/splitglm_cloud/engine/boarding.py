"""Who gets a place in a sweep: limits, room per layer, and the plan made when a sweep begins. Pure.

Every rider alights before the sweep ends, so a sweep begins empty and its places are given out in one plan over all
waiting works, wherever in the sweep they board. That is what keeps the places of a late boarding layer free of works
that board early.

Tenants of one class and kind share by weight (``fairness``): two that always wait differ by two largest charges at
most, over any stretch of sweeps. Apart from that stands the share of the overdue, ``min_prefill_rows`` and
``min_decode_rows`` of a sweep: it goes by age alone, and what a tenant gets from it is charged like all else.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from splitglm_cloud.engine.fairness import VirtualService
from splitglm_cloud.engine.work import Work
from splitglm_core.criticality import Criticality
from splitglm_core.errors import InputError
from splitglm_core.ranges import LayerRange

Domain = tuple[Criticality, bool]
"""Tenants compete inside one class and one kind (True: decode)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepLimits:
    """What may ride together.

    Attributes:
        max_rows: rows aboard at any layer.
        prefill_rows_beside_decode: prefill rows aboard while a decode work is aboard or waiting; bounds how much a
            prompt slows the tokens of others.
        min_prefill_rows: rows that decode never takes while a prefill work waits; also the smallest part into which a
            prefill work is cut.
        min_decode_rows: rows that prefill never takes, so that a token that arrives beside prompts boards at once.
        stride_layers: layers in one segment at most, so that work arriving meanwhile boards at its layer soon.
        max_wait_s: work that has waited longer boards first, oldest first, whatever its class and tenant, inside the
            ``min_*_rows`` of its kind.
    """

    max_rows: int = 512
    prefill_rows_beside_decode: int = 64
    min_prefill_rows: int = 16
    min_decode_rows: int = 16
    stride_layers: int = 4
    max_wait_s: float = 2.0

    def __post_init__(self) -> None:
        if min(self.min_prefill_rows, self.min_decode_rows, self.stride_layers) < 1 or not self.max_wait_s >= 0:
            raise InputError("each share of a sweep needs a row, a segment a layer, and a wait cannot be negative")
        if self.min_prefill_rows + self.min_decode_rows > self.max_rows:
            shares = f"{self.min_prefill_rows} rows of prefill and {self.min_decode_rows} of decode"
            raise InputError(f"max_rows={self.max_rows} cannot hold {shares}", "raise max_rows")
        if not self.min_prefill_rows <= self.prefill_rows_beside_decode:
            raise InputError("prefill_rows_beside_decode must be at least min_prefill_rows")

    @property
    def max_decode_rows(self) -> int:
        """Decode rows at any layer while prefill waits. A larger decode work is cut like a prefill work."""
        return self.max_rows - self.min_prefill_rows


@dataclass(frozen=True, slots=True)
class Waiting:
    """A work that waits, in order of arrival."""

    work: Work
    whole: bool
    added_s: float
    order: int

    @property
    def domain(self) -> Domain:
        return self.work.criticality, self.whole

    def cost(self, rows: int) -> float:
        """What ``rows`` of this work are charged to its tenant."""
        return rows * len(self.work.layers) / self.work.weight


class Room:
    """Rows at every layer, taken and free.

    Args:
        beside_decode: a decode work is aboard or waiting.
        beside_prefill: a prefill work is waiting.
    """

    def __init__(self, limits: SweepLimits, *, layers: int, beside_decode: bool, beside_prefill: bool) -> None:
        self._max_rows = limits.max_rows
        self._most_whole = limits.max_decode_rows if beside_prefill else limits.max_rows
        prefill_alone = limits.max_rows - limits.min_decode_rows
        self._most_parts = min(prefill_alone, limits.prefill_rows_beside_decode) if beside_decode else prefill_alone
        self._whole = [0] * layers
        self._parts = [0] * layers

    def take(self, layers: LayerRange, rows: int, *, whole: bool) -> None:
        load = self._whole if whole else self._parts
        for layer in range(layers.start, layers.stop):
            load[layer] += rows

    def free(self, layers: LayerRange, *, whole: bool) -> int:
        """Rows that may still ride through all of ``layers``; not below zero."""
        taken_whole, taken_parts = self._whole[layers.start : layers.stop], self._parts[layers.start : layers.stop]
        kind = self._most_whole - max(taken_whole) if whole else self._most_parts - max(taken_parts)
        return max(0, min(kind, self._max_rows - max(map(int.__add__, taken_whole, taken_parts))))


@dataclass(slots=True)
class Places:
    """The outcome of a plan.

    Attributes:
        rows: by session, the rows that board when the sweep comes to its layer.
        assured: those of them that board whatever arrives before.
        contended: domains in which somebody got less than wanted, and the tenants that did.
    """

    rows: dict[int, int] = field(default_factory=dict)
    assured: dict[int, int] = field(default_factory=dict)
    contended: dict[Domain, set[str]] = field(default_factory=dict)


def part(entry: Waiting, wanted: int, free: int, smallest: int) -> int:
    """How many of ``wanted`` rows board where ``free`` are: all or none of a whole work, no splinter of another."""
    if wanted <= free:
        return wanted
    return 0 if entry.whole or free < smallest else free


def plan(
    decode: Iterable[Waiting],
    prefill: Iterable[Waiting],
    *,
    room: Room,
    limits: SweepLimits,
    now_s: float,
    services: Mapping[Domain, VirtualService],
) -> Places:
    """Give out an empty sweep: those that waited too long, then by class, tenant and arrival; decode before prefill.

    Args:
        decode, prefill: all waiting works in order of arrival.
        services: of every domain that occurs; read only, for what is planned is charged when it boards.
    """
    places = Places()
    kinds = [(list(decode), limits.min_decode_rows), (list(prefill), limits.min_prefill_rows)]
    for entries, share in kinds:
        _place_overdue(places, room, entries, share, now_s - limits.max_wait_s)
    for entries, _ in kinds:
        domains: dict[Domain, dict[str, list[Waiting]]] = {}
        for entry in entries:
            domains.setdefault(entry.domain, {}).setdefault(entry.work.tenant, []).append(entry)
        for domain in sorted(domains):
            _place_fairly(places, room, domain, domains[domain], services[domain], limits.min_prefill_rows)
    return places


def _place_overdue(places: Places, room: Room, entries: list[Waiting], share: int, since_s: float) -> None:
    left = share
    for entry in entries:
        if entry.added_s > since_s:
            return
        rows = entry.work.rows
        if rows > left:
            if left < share:
                return
            rows = rows if entry.whole else left
        room.take(entry.work.layers, rows, whole=entry.whole)
        places.rows[entry.work.session] = places.assured[entry.work.session] = rows
        left -= rows
        if left <= 0:
            return


def _place_fairly(
    places: Places,
    room: Room,
    domain: Domain,
    queues: dict[str, list[Waiting]],
    service: VirtualService,
    smallest: int,
) -> None:
    """One work of the tenant with the smallest counter at a time; a tenant whose next work finds no room is done."""
    counters = {tenant: service.of(tenant) for tenant in queues}
    for tenant, queue in queues.items():
        counters[tenant] += sum(entry.cost(places.rows.get(entry.work.session, 0)) for entry in queue)
    turns = [(counters[tenant], queue[0].order, tenant, 0) for tenant, queue in queues.items()]
    heapq.heapify(turns)
    short: set[str] = set()
    while turns:
        _, _, tenant, index = heapq.heappop(turns)
        entry = queues[tenant][index]
        session, work = entry.work.session, entry.work
        had = places.rows.get(session, 0)
        wanted = work.rows - had
        rows = part(entry, wanted, room.free(work.layers, whole=entry.whole), 1 if had else smallest) if wanted else 0
        if rows:
            room.take(work.layers, rows, whole=entry.whole)
            places.rows[session] = had + rows
            counters[tenant] += entry.cost(rows)
        if rows < wanted:
            short.add(tenant)
        if rows or not wanted:
            index += 1
            if index < len(queues[tenant]):
                heapq.heappush(turns, (counters[tenant], queues[tenant][index].order, tenant, index))
    if short:
        places.contended[domain] = short
