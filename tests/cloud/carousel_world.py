"""A simulated engine around the carousel: sessions come, compute, are cancelled, evicted, expire; nothing is believed.

The world keeps its own books of every work and compares each segment with them. Time is a number that grows with the
rows and layers computed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from splitglm_cloud.engine.carousel import Carousel, SweepLimits
from splitglm_cloud.engine.kv_pages import KvPages
from splitglm_cloud.engine.work import Segment, Work
from splitglm_core.criticality import Criticality
from splitglm_core.ranges import LayerRange


@dataclass(slots=True)
class Device:
    """One session: prompts of ``prompt_rows``, then tokens, with pauses in between."""

    session: int
    layers: LayerRange
    tenant: str = ""
    weight: float = 1.0
    criticality: Criticality = Criticality.CRITICAL
    prompt_rows: int = 0
    tokens: int = 0
    draft_rows: int = 1
    pause_s: float = 0.0
    patience_s: float = math.inf
    left_rows: int = 0
    left_tokens: int = 0
    base: int = 0
    wakes_s: float = 0.0


@dataclass(slots=True)
class Account:
    """What the world knows of one work that it added and that has not ended."""

    work: Work
    added_s: float
    order: int
    added_sweep: int
    at: int | None = None  # the layer it needs next, once aboard
    due_sweep: int | None = None  # the last sweep in which it may board
    rows: int = 0


@dataclass(slots=True)
class World:
    """``devices`` on one carousel.

    Attributes:
        cancels: how often a work is cancelled while a segment is out; half of them are submitted anew at once.
    """

    limits: SweepLimits
    devices: list[Device]
    rng: random.Random
    pages: KvPages = field(default_factory=lambda: KvPages(pages=10**9))
    cancels: float = 0.0
    now_s: float = 0.0
    row_layer_s: float = 1e-4
    segment_s: float = 1e-3

    carousel: Carousel = field(init=False)
    pending: dict[int, Account] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("alighted", "removed", "expired"), 0))
    added: int = 0
    most_rows: int = 0
    mixed_segments: int = 0
    evictions: int = 0
    row_layers: dict[str, float] = field(default_factory=dict)  # by tenant
    waited_sweeps: dict[str, list[int]] = field(default_factory=dict)  # by tenant, of every work that boarded
    overdue: int = 0  # works that waited too long, and yet boarded in time

    def __post_init__(self) -> None:
        self.carousel = Carousel(limits=self.limits)

    def run(self, sweeps: int) -> None:
        end = self.carousel.sweeps + sweeps
        while self.carousel.sweeps < end:
            self.wake()
            self.step()

    def drain(self) -> None:
        """No device asks for more; everything accepted must end."""
        for device in self.devices:
            device.wakes_s = math.inf
        while self.pending:
            self.step()
        assert self.carousel.next_segment(self.now_s) is None
        assert len(self.carousel) == self.carousel.riding == 0
        assert self.added == sum(self.ended.values())
        for device in self.devices:
            self.pages.release(device.session)
        self.pages.check_integrity()
        assert self.pages.used == 0

    def wake(self) -> None:
        for device in self.devices:
            if device.session not in self.pending and device.wakes_s <= self.now_s:
                if not device.left_rows and not device.left_tokens:
                    device.left_rows, device.left_tokens = device.prompt_rows, device.tokens
                self.add(device)

    def add(self, device: Device) -> None:
        prefill = device.left_rows > 0
        work = Work(
            session=device.session,
            seq=self.added,
            layers=device.layers,
            base=device.base,
            rows=device.left_rows if prefill else device.draft_rows,
            decode=not prefill,
            tenant=device.tenant,
            weight=device.weight,
            criticality=device.criticality,
            deadline_s=self.now_s + device.patience_s,
        )
        self.carousel.add(work, self.now_s)
        self.pending[device.session] = Account(work, self.now_s, self.added, self.carousel.sweeps)
        self.added += 1

    def step(self) -> None:
        for work in self.carousel.expire(self.now_s):
            account = self.end(work.session, "expired")
            assert account.at is None and account.work is work and work.deadline_s < self.now_s
        waiting = {session: account for session, account in self.pending.items() if account.at is None}
        assert len(self.carousel) == len(waiting)
        sweep = self.carousel.sweeps
        segment = self.carousel.next_segment(self.now_s)
        self.carousel.check_integrity()
        if self.carousel.sweeps != sweep:
            assert self.carousel.sweeps == sweep + 1 and len(waiting) == len(self.pending)
            self.note_overdue(waiting)
        if segment is None:
            assert not self.pending
            self.now_s = max(self.now_s, min((device.wakes_s for device in self.devices), default=0.0))
            return
        self.check_boarding(segment, waiting)
        self.check_riding(segment)
        self.disturb(segment)
        self.now_s += self.segment_s + self.row_layer_s * segment.rows * len(segment.layers)
        due = [
            work for work in segment.riders if self.alive(work) and self.pending[work.session].at == work.layers.stop
        ]
        alighted = self.carousel.finished(segment)
        assert list(alighted) == due
        for work in alighted:
            self.alight(work)

    def alive(self, work: Work) -> bool:
        account = self.pending.get(work.session)
        return account is not None and account.work.seq == work.seq

    def note_overdue(self, waiting: dict[int, Account]) -> None:
        """A sweep has begun: by which sweep must each work that waited too long have boarded?"""
        overdue = [one for one in waiting.values() if self.now_s - one.added_s >= self.limits.max_wait_s]
        for account in overdue:
            if account.due_sweep is None:
                older = [one for one in overdue if self.whole(one) == self.whole(account) and one.order < account.order]
                at_once = 1
                if self.whole(account):
                    largest = max(one.work.rows for one in [account, *older])
                    at_once = max(1, self.limits.min_decode_rows // largest)
                account.due_sweep = self.carousel.sweeps + len(older) // at_once

    def whole(self, account: Account) -> bool:
        return account.work.decode and account.work.rows <= self.limits.max_rows - self.limits.min_prefill_rows

    def check_boarding(self, segment: Segment, waiting: dict[int, Account]) -> None:
        limits, here = self.limits, segment.layers.start
        prefill_before = sum(one.rows for one in self.pending.values() if one.at is not None and not self.whole(one))
        boarded = [waiting[work.session] for work in segment.riders if work.session in waiting]
        decode_about = any(self.whole(account) for account in self.pending.values())
        overdue_rows = 0
        for account in boarded:
            rows = next(work.rows for work in segment.riders if work.session == account.work.session)
            assert account.work.layers.start == here
            assert rows == account.work.rows or (not self.whole(account) and limits.min_prefill_rows <= rows)
            assert rows <= account.work.rows
            if account.due_sweep is not None and not self.whole(account):
                overdue_rows += min(rows, limits.min_prefill_rows)
            account.at, account.rows = here, rows
            self.overdue += account.due_sweep is not None
            waited = self.carousel.sweeps - account.added_sweep
            self.waited_sweeps.setdefault(account.work.tenant, []).append(waited)
            older = [
                one
                for one in waiting.values()
                if one.at is None and one.order < account.order and self.group(one) == self.group(account)
            ]
            assert not [one for one in older if one not in boarded], "a younger work of the same queue went first"
        prefill = sum(one.rows for one in boarded if not self.whole(one))
        if prefill:
            most = limits.max_rows - limits.min_decode_rows
            if decode_about:
                most = min(most, max(limits.prefill_rows_beside_decode, prefill_before) + overdue_rows)
            assert prefill_before + prefill <= most
        late = [one for one in waiting.values() if one.at is None and one.due_sweep is not None]
        for one in late:
            due = one.due_sweep or 0
            passed = one.work.layers.start <= here
            assert self.carousel.sweeps < due or (self.carousel.sweeps == due and not passed), "starved"

    @staticmethod
    def group(account: Account) -> tuple[object, ...]:
        work = account.work
        return work.criticality, work.tenant, work.decode, work.layers.start

    def check_riding(self, segment: Segment) -> None:
        layers = segment.layers
        assert 1 <= len(layers) <= self.limits.stride_layers
        assert segment.rows <= self.limits.max_rows
        aboard = [session for session, account in self.pending.items() if account.at is not None]
        assert sorted(work.session for work in segment.riders) == sorted(aboard)
        for work in segment.riders:
            account = self.pending[work.session]
            assert account.at == layers.start and work.layers.covers(layers)
            assert work.rows == account.rows and work.seq == account.work.seq
            account.at = layers.stop
            cost = work.rows * len(layers)
            self.row_layers[work.tenant] = self.row_layers.get(work.tenant, 0.0) + cost
        self.most_rows = max(self.most_rows, segment.rows)
        self.mixed_segments += len({work.layers.start for work in segment.riders}) > 1

    def disturb(self, segment: Segment) -> None:
        """While the segment is out: pages are taken, sessions evicted for them, works cancelled and submitted anew."""
        for work in segment.riders:
            if work.layers.start == segment.layers.start and self.alive(work):
                self.hold_pages(work)
        if self.rng.random() < self.cancels and self.pending:
            session = self.rng.choice(list(self.pending))
            self.remove(session)
            if self.rng.random() < 0.5:
                self.add(self.device(session))
        if self.rng.random() < 0.05:
            self.pages.check_integrity()

    def hold_pages(self, work: Work) -> None:
        positions = work.base + work.rows
        size = {"layers": len(work.layers), "positions": positions}
        while (granted := self.pages.grow(work.session, **size)) is None:
            others = [
                one.session for one in self.devices if one.session != work.session and self.pages.held(one.session)
            ]
            if not others:
                assert self.pages.missing(work.session, **size) + self.pages.held(work.session) > 0
                self.evict(work.session)
                return
            self.evict(self.rng.choice(others))
        assert len(granted) == len(work.layers)

    def evict(self, session: int) -> None:
        """Its keys and values go, so it begins again at position 0."""
        self.evictions += 1
        self.pages.release(session)
        if session in self.pending:
            self.remove(session)
        device = self.device(session)
        device.base, device.left_rows, device.left_tokens = 0, 0, 0

    def remove(self, session: int) -> None:
        assert self.carousel.remove(session)
        assert not self.carousel.remove(session)
        self.end(session, "removed")

    def alight(self, work: Work) -> None:
        device = self.device(work.session)
        self.end(work.session, "alighted")
        device.base += work.rows
        if device.left_rows:
            device.left_rows -= work.rows
        else:
            device.left_tokens -= 1
        if device.left_rows <= 0 and device.left_tokens <= 0:
            self.pages.shrink(device.session, positions=device.base // 2)
            device.base //= 2
            device.wakes_s = self.now_s + device.pause_s * self.rng.random()
        elif device.wakes_s < math.inf:
            self.add(device)

    def end(self, session: int, how: str) -> Account:
        self.ended[how] += 1
        return self.pending.pop(session)

    def device(self, session: int) -> Device:
        return self.devices[session]
