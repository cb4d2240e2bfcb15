"""Many devices and one cloud that they share, in virtual time (SimPy), under the product's own scheduler and admission

Devices meet only in the cloud, so a device's program runs ahead of the world's clock until it waits for the cloud: what
costs events is arrivals and batches, not devices or tokens computed at home.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import simpy

from splitglm_cloud.engine.boarding import SweepLimits
from splitglm_cloud.gateway.load import LoadLimits
from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_sims.strategies.strategy import Strategy
from splitglm_sims.world.account import Account
from splitglm_sims.world.alone import Program
from splitglm_sims.world.crowd_port import CrowdPort
from splitglm_sims.world.draws import Draws
from splitglm_sims.world.effort import Efforts
from splitglm_sims.world.handset import Handset
from splitglm_sims.world.judging import forbidden
from splitglm_sims.world.lone import check_jobs, decided, settle, tell
from splitglm_sims.world.order import Order
from splitglm_sims.world.record import Record
from splitglm_sims.world.reply import on_device, run_reply
from splitglm_sims.world.scene import CloudScene, Scene
from splitglm_sims.world.sweeping import SweptCloud
from splitglm_sims.world.trial import conclude


@dataclass(frozen=True, slots=True, kw_only=True)
class CrowdScene:
    """Devices that share a cloud.

    Attributes:
        devices: how many there are.
        device: the scene of a device by its index. Its cloud must be this cloud; what its ``queue_s`` and ``jitter``
            say is not used, for the queue is that of the crowd.
        cloud: profile and slowdown of the one cloud.
        sweep, load: limits of its scheduler and of its admission, as in its settings.
        sample_s: width of the intervals of ``CrowdResult.busy_ratio``.
    """

    devices: int
    device: Callable[[int], Scene]
    cloud: CloudScene
    sweep: SweepLimits = field(default_factory=SweepLimits)
    load: LoadLimits = field(default_factory=LoadLimits)
    sample_s: float = 1.0

    def __post_init__(self) -> None:
        if self.devices < 1 or not self.sample_s > 0.0:
            raise InputError("a crowd needs a device, and its samples a width")


@dataclass(frozen=True, slots=True, kw_only=True)
class CrowdResult:
    """What came of a crowd.

    Attributes:
        records: of each device, in order of its jobs.
        busy_ratio: share of each interval of ``sample_s`` in which the cloud computed layers.
        waiting: most works that waited in each interval.
        refusals, expired: steps not let in; steps let in that waited too long.
        batches, row_layers: batches through one layer, and their rows.
        events: that the world's clock handled.
        end_s: when the last of them was.
    """

    records: tuple[tuple[Record, ...], ...]
    sample_s: float
    busy_ratio: tuple[float, ...]
    waiting: tuple[int, ...]
    refusals: int
    expired: int
    batches: int
    row_layers: int
    events: int
    end_s: float


def run_crowd(crowd: CrowdScene, make_strategy: Callable[[int], Strategy]) -> CrowdResult:
    """Let every device's strategy plan its jobs, all in one world.

    Raises:
        InputError: a device's cloud is another one, or a strategy asks to know the future, which hangs on others.
    """
    world = _World(crowd)
    efforts = Efforts()
    for index in range(crowd.devices):
        scene, strategy = crowd.device(index), make_strategy(index)
        if scene.cloud.profile != crowd.cloud.profile:
            raise InputError(f"device {index} of the crowd knows another cloud")
        if strategy.clairvoyant:
            raise InputError("a clairvoyant strategy has no place in a crowd: what comes depends on the others")
        check_jobs(scene)
        world.devices.append(_Device(world, Handset(scene, index, efforts, world.cloud.load_at), strategy))
    return world.run()


class _World:
    """The clock, the cloud and its engine's loop."""

    def __init__(self, crowd: CrowdScene) -> None:
        self.crowd = crowd
        self.env = simpy.Environment()
        self.cloud = SweptCloud(crowd.cloud.profile, crowd.cloud.slowdown, crowd.sweep, crowd.load)
        self.devices: list[_Device] = []
        self._idle: simpy.Event | None = None
        self._busy_s: dict[int, float] = {}
        self._waiting: dict[int, int] = {}
        self._events = 0
        self._ahead_s = 0.0

    @property
    def now_s(self) -> float:
        return max(float(self.env.now), self._ahead_s)

    def at(self, time_s: float, call: Callable[[], None]) -> None:
        self._events += 1
        event = self.env.timeout(max(0.0, time_s - self.env.now))
        event.callbacks.append(lambda _: call())

    def work(self) -> None:
        if self._idle is not None and not self._idle.triggered:
            self._idle.succeed()

    def run(self) -> CrowdResult:
        for device in self.devices:
            self.at(0.0, device.resume)
        self.env.process(self._engine())
        self.env.run()
        last = max((*self._busy_s, *self._waiting), default=-1) + 1
        width = self.crowd.sample_s
        return CrowdResult(
            records=tuple(tuple(device.records) for device in self.devices),
            sample_s=width,
            busy_ratio=tuple(self._busy_s.get(i, 0.0) / width for i in range(last)),
            waiting=tuple(self._waiting.get(i, 0) for i in range(last)),
            refusals=self.cloud.refusals,
            expired=self.cloud.expired,
            batches=self.cloud.batches,
            row_layers=self.cloud.row_layers,
            events=self._events,
            end_s=self.now_s,
        )

    def _engine(self) -> Generator[simpy.Event, Any, None]:
        """Board, compute, answer. As long as nothing else can happen before a batch ends, the clock need not be asked:
        the engine goes ahead of it, and ``now_s`` with the engine."""
        cloud, env = self.cloud, self.env
        while True:
            for order, refusal in cloud.expire(self._ahead_s):
                self.devices[order.session].port.refused(order, refusal, self._ahead_s)
            begun = cloud.begin(self._ahead_s)
            if begun is None:
                self._idle = env.event()
                yield self._idle
                self._ahead_s = max(self._ahead_s, env.now)
                continue
            segment, seconds = begun
            self._sample(seconds)
            if not self._passes(seconds):
                yield self._until()
            passed, head_s = cloud.finish(segment, self._ahead_s)
            if not passed:
                continue
            for order in passed:
                if not order.head_rows:
                    self._answer(order)
            later = [order for order in passed if order.head_rows]
            if later and not self._passes(head_s):
                yield self._until()
            for order in later:
                self._answer(order)

    def _passes(self, seconds: float) -> bool:
        """The engine is busy for ``seconds``; whether nothing happens meanwhile."""
        self._ahead_s += seconds
        return self.env.peek() > self._ahead_s

    def _until(self) -> simpy.Event:
        """The clock comes to where the engine is."""
        self._events += 1
        return self.env.timeout(max(0.0, self._ahead_s - self.env.now))

    def _answer(self, order: Order) -> None:
        port = self.devices[order.session].port
        tokens = self.cloud.advance(order, self._ahead_s)
        port.gained(order, tokens, self._ahead_s)

    def _sample(self, seconds: float) -> None:
        """Book a batch that begins now; its seconds may reach into later intervals."""
        width, at_s = self.crowd.sample_s, self._ahead_s
        slot, waiting = int(at_s / width), len(self.cloud.carousel)
        if waiting > self._waiting.get(slot, -1):
            self._waiting[slot] = waiting
        while seconds > 0.0:
            part = min(seconds, (slot + 1) * width - at_s)
            self._busy_s[slot] = self._busy_s.get(slot, 0.0) + part
            seconds, at_s, slot = seconds - part, (slot + 1) * width, slot + 1


class _Device:
    """One device's life: its program, and what it waits for."""

    def __init__(self, world: _World, handset: Handset, strategy: Strategy) -> None:
        self.world, self.handset, self.strategy = world, handset, strategy
        self.records: list[Record] = []
        self.port: CrowdPort
        self._under_way = False  # a reply that uses the port
        self._life = self._live()
        self._wish: tuple[float, bool] | None = None
        self._looks_s = self._looked_s = -1.0  # when it will look again, if it does not wait, and when it last did

    def _look(self, now_s: float) -> None:
        """The clock is where the device wanted to look; rounding may leave it just short of that."""
        self._looked_s = now_s
        self.resume()

    def resume(self) -> None:
        """Go on as far as what is known allows."""
        try:
            if self._wish is None:
                self._wish = next(self._life)
            while True:
                now_s, block = self._wish
                answer = self.port.take(now_s, block) if self._under_way else None
                if answer is None and (block or max(self.world.now_s, self._looked_s) < now_s):
                    if not block and self._looks_s != now_s:
                        self._looks_s = now_s
                        self.world.at(now_s, partial(self._look, now_s))
                    return
                self._wish = self._life.send(answer)
        except StopIteration:
            self._wish = float("inf"), True

    def _live(self) -> Program[None]:
        handset, strategy, cloud = self.handset, self.strategy, self.world.cloud
        scene, free_s = handset.scene, 0.0
        for index, job in enumerate(scene.jobs):
            start_s = max(job.at_s, free_s, self.world.now_s)
            if start_s > self.world.now_s:  # what it will be told of the cloud is not known before
                yield start_s, False
            draws, account = handset.draws(index), Account(start_s, told=[])
            situation = handset.situation(index)
            plan, now_s = decided(handset, strategy, index, situation, account, draws, start_s)
            probed_s, true = now_s, handset.true_situation(situation, now_s)
            account.failed = forbidden(plan, true)
            if account.failed is None:
                reply = handset.reply(index, plan, true, draws)
                if plan.arm is not Arm.DEVICE:
                    self.port, self._under_way = self._port(plan, draws, stranded=reply.alone is None), True
                    if not reply.cached_tokens:
                        cloud.close(handset.index)
                    now_s = yield from run_reply(reply, self.port, draws, account, now_s)
                    self.port.closed, self._under_way = True, False
                    if account.fell_back or account.failed:
                        cloud.close(handset.index)
                else:
                    now_s = on_device(reply, reply.effort, account, now_s)
            trial = conclude(handset, index, account, draws, now_s)
            free_s = trial.end_s
            tell(strategy, account)
            self.records.append(settle(handset, strategy, index, plan, account, trial, start_s, probed_s))

    def _port(self, plan: SplitPlan, draws: Draws, *, stranded: bool) -> CrowdPort:
        handset = self.handset
        return CrowdPort(
            handset.link,
            handset.scene.link,
            draws,
            handset.believed,
            session=handset.index,
            layers=plan.back,
            cloud=self.world.cloud,
            clock=self.world,
            wake=self.resume,
            stranded=stranded,
        )
