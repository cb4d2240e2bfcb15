"""The carousel over many sweeps: nobody starves, nobody takes another's share, every accepted work ends once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from carousel_world import Device, World

from splitglm_cloud.engine.carousel import SweepLimits
from splitglm_cloud.engine.kv_pages import KvPages
from splitglm_core.criticality import Criticality
from splitglm_core.ranges import LayerRange

LAYERS = 24
TINY = SweepLimits(
    max_rows=12, prefill_rows_beside_decode=5, min_prefill_rows=3, min_decode_rows=4, stride_layers=2, max_wait_s=0.3
)
SMALL = SweepLimits(max_rows=48, prefill_rows_beside_decode=16, max_wait_s=0.5)
NORMAL = SweepLimits(max_wait_s=0.2)


def crowd(rng: random.Random, size: int) -> list[Device]:
    devices = []
    for session in range(size):
        start = rng.randrange(LAYERS)
        devices.append(
            Device(
                session=session,
                layers=LayerRange(start, rng.randrange(start + 1, LAYERS + 1)),
                tenant=f"tenant {rng.randrange(4)}",
                weight=rng.choice([0.5, 1.0, 3.0]),
                criticality=rng.choice(list(Criticality)),
                prompt_rows=rng.choice([0, 0, 5, 60, 300, 900]),
                tokens=rng.choice([1, 8, 50]),
                draft_rows=rng.choice([1, 1, 1, 4, 9]),
                pause_s=rng.choice([0.0, 0.01, 1.0]),
                patience_s=rng.choice([math.inf, math.inf, 0.5, 5.0]),
            )
        )
    return devices


def live_through(seed: int, *, limits: SweepLimits, size: int, pages: int, sweeps: int) -> World:
    rng = random.Random(seed)
    world = World(limits, crowd(rng, size), rng, pages=KvPages(pages=pages), cancels=0.1)
    world.run(sweeps)
    world.drain()
    return world


@pytest.mark.parametrize(
    ("seed", "limits", "size", "pages"),
    [(1, NORMAL, 60, 4000), (2, NORMAL, 20, 150), (3, SMALL, 50, 1500), (4, SMALL, 30, 90), (5, TINY, 40, 2000)],
)
def test_a_crowd_of_any_cut_class_and_size_is_served(seed: int, limits: SweepLimits, size: int, pages: int) -> None:
    world = live_through(seed, limits=limits, size=size, pages=pages, sweeps=100)
    assert world.ended["alighted"] > 10 * size and world.ended["removed"] > size
    assert limits is not SMALL or world.ended["expired"] > 0
    assert world.mixed_segments > 100
    assert (world.evictions > 20) is (pages < 1000)
    assert limits is not TINY or (world.overdue > 50 and world.most_rows == limits.max_rows)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_crowds_are_served_for_thousands_of_sweeps(seed: int) -> None:
    rng = random.Random(seed)
    limits, size, pages = rng.choice([TINY, SMALL, NORMAL]), rng.choice([8, 30, 90]), rng.choice([90, 400, 4000])
    assert live_through(seed, limits=limits, size=size, pages=pages, sweeps=2000).ended["alighted"] > 1000


def full_house(devices: list[Device], limits: SweepLimits, sweeps: int, seed: int = 0) -> World:
    """Everybody asks at once and asks again at once, for ever; no cancels, no eviction."""
    for session, device in enumerate(devices):
        device.session = session
    world = World(limits, devices, random.Random(seed))
    world.run(sweeps)
    return world


def prompts(count: int, *, start: int = 0, rows: int = 10_000, tenant: str = "", **more: object) -> list[Device]:
    layers = LayerRange(start, LAYERS)
    return [Device(0, layers, tenant, prompt_rows=rows, **more) for _ in range(count)]  # type: ignore[arg-type]


def tokens(count: int, *, start: int = 0, rows: int = 1, tenant: str = "", **more: object) -> list[Device]:
    layers = LayerRange(start, LAYERS)
    return [Device(0, layers, tenant, tokens=10_000, draft_rows=rows, **more) for _ in range(count)]  # type: ignore[arg-type]


def test_the_least_critical_boards_within_the_stated_sweeps_beside_a_flood_of_the_most_critical() -> None:
    flood = tokens(80, criticality=Criticality.CRITICAL_PLUS, tenant="flood")
    low = tokens(6, rows=4, criticality=Criticality.SHEDDABLE, tenant="low")
    low += prompts(1, criticality=Criticality.SHEDDABLE, tenant="low prompt")
    flood += prompts(5, criticality=Criticality.CRITICAL_PLUS, tenant="flood")
    world = full_house(flood + low, SMALL, 300)  # the world checks the bound for every work
    assert world.overdue > 20
    assert len(world.waited_sweeps["low"]) > 20 and len(world.waited_sweeps["low prompt"]) > 2


def test_a_late_boarding_layer_is_not_starved_by_early_boarders() -> None:
    """Without any ageing: of 20 that always wait at layer 0 and one at layer 20, each gets its turn."""
    limits = SweepLimits(max_wait_s=math.inf)
    world = full_house(prompts(20, tenant="early") + prompts(1, start=20, tenant="late"), limits, 100)
    assert max(world.waited_sweeps["late"]) <= 2
    world = full_house(prompts(20) + prompts(1, start=20), limits, 100)
    assert len([work for work in world.waited_sweeps[""] if work > 21]) == 0  # of one tenant: in order of arrival


def test_decode_that_fills_every_sweep_leaves_prefill_its_share() -> None:
    limits = SweepLimits(max_rows=64, max_wait_s=math.inf)
    world = full_house(tokens(200, tenant="tokens") + prompts(1, tenant="prompt"), limits, 50)
    assert world.row_layers["prompt"] >= 49 * limits.min_prefill_rows * LAYERS
    assert max(world.waited_sweeps["prompt"]) <= 1


def test_prefill_that_fills_every_sweep_delays_no_token() -> None:
    limits = SweepLimits(max_rows=64, prefill_rows_beside_decode=32, max_wait_s=math.inf)
    world = World(limits, [*prompts(30), *tokens(16, start=10, pause_s=0.3)], random.Random(0))
    for session, device in enumerate(world.devices):
        device.session, device.tokens = session, 10_000 if device.prompt_rows else 1
        device.tenant = "prompt" if device.prompt_rows else "token"
    world.run(200)
    assert len(world.waited_sweeps["token"]) > 200
    assert max(world.waited_sweeps["token"]) <= 1  # it boards the sweep under way, or the next when its layer is past


Kind = Callable[..., list[Device]]


@pytest.mark.parametrize("kind", [prompts, tokens])
def test_backlogged_tenants_get_service_by_weight(kind: Kind) -> None:
    """Over any stretch of sweeps: service by weight differs by two largest charges at most (VTC, theorem 4.4)."""
    devices = kind(60, tenant="one", weight=1.0) + kind(60, tenant="three", weight=3.0)
    for device in devices:
        device.layers = LayerRange(random.Random(device.tenant).randrange(4), LAYERS)
    limits = SweepLimits(max_rows=36, max_wait_s=math.inf)
    world = full_house(devices, limits, 0)
    history = []
    for _ in range(60):
        world.run(1)
        while world.carousel.riding:
            world.step()
        history.append((world.row_layers.get("one", 0.0), world.row_layers.get("three", 0.0) / 3))
    largest = LAYERS * (limits.max_rows if kind is prompts else 1)
    for begin in history[::5]:
        gained = [after - before for before, after in zip(begin, history[-1], strict=True)]
        assert abs(gained[0] - gained[1]) <= 2 * largest
    assert history[-1][0] > 20 * 9 * LAYERS / 2


@pytest.mark.parametrize("crowded_before", [False, True])
def test_a_newcomer_gets_its_share_at_once_and_no_more(crowded_before: bool) -> None:
    """Whether those before it had the machine to themselves or fought for it, history is not paid back to it."""
    limits = SweepLimits(max_rows=40, max_wait_s=math.inf)
    late = tokens(60, tenant="late", wakes_s=1e9)
    early = tokens(60 if crowded_before else 20, tenant="early") + tokens(30, tenant="crowd", pause_s=1e9)
    for device in early[-30:]:
        device.tokens = 3
    world = full_house(early + late, limits, 150)
    assert "late" not in world.row_layers and "crowd" in world.row_layers
    for device in late:
        device.wakes_s = 0.0
    world.run(1)
    before = dict(world.row_layers)
    world.run(40)
    gained = {tenant: world.row_layers[tenant] - before.get(tenant, 0.0) for tenant in ("early", "late")}
    assert gained["late"] == pytest.approx(gained["early"], rel=0.1)


@pytest.mark.parametrize("kind", [prompts, tokens])
@pytest.mark.parametrize("max_wait_s", [0.5, math.inf])
def test_a_greedy_tenant_does_not_make_others_wait(kind: Kind, max_wait_s: float) -> None:
    """Nine tenants with a session each, beside 50 greedy sessions and beside 1 of the same tenant.

    They get as much service, and wait at most 1.5 times as many sweeps. With ageing, the greedy works wait long and so
    take the share of the overdue, ``min_*_rows`` of every sweep: that much of their service the others may lose, and
    they wait at most twice as long.
    """
    limits = SweepLimits(max_rows=100 if kind is prompts else 40, max_wait_s=max_wait_s)
    sweeps = 300

    def others(greedy: int) -> tuple[float, float, int]:
        devices = kind(greedy, tenant="greedy") + [kind(1, tenant=f"modest {index}")[0] for index in range(9)]
        world = full_house(devices, limits, sweeps)
        waits = sorted(wait for tenant, of in world.waited_sweeps.items() if tenant != "greedy" for wait in of)
        service = sum(done for tenant, done in world.row_layers.items() if tenant != "greedy")
        return service, sum(waits) / len(waits), waits[int(0.99 * len(waits))]

    (service_beside_one, mean_beside_one, late_beside_one), (service, mean, late) = others(1), others(50)
    ageing = max_wait_s < math.inf
    lost = sweeps * limits.min_prefill_rows * LAYERS if ageing else 0
    assert service >= 0.98 * service_beside_one - lost
    factor = 2.0 if ageing else 1.5
    assert mean <= factor * mean_beside_one
    assert late <= factor * late_beside_one + 1
