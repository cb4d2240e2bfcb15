"""Many devices and one cloud: nothing is lost or made, load is felt, admission is the product's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from world_scenes import (
    CLOUD,
    CLOUD_ONLY,
    DEVICE_ONLY,
    LAYERS,
    OnePlan,
    cloud_profile,
    jobs,
    link_scene,
    scene,
    split,
    ushape,
)

from splitglm_cloud.engine.boarding import SweepLimits
from splitglm_cloud.gateway.load import LoadLimits
from splitglm_core.errors import InputError
from splitglm_core.plan import SplitPlan
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import CloudHint
from splitglm_sims.traces import RateTrace
from splitglm_sims.world.crowd import CrowdResult, CrowdScene, run_crowd
from splitglm_sims.world.lone import run_lone
from splitglm_sims.world.scene import CloudScene, Scene

PLANS = (CLOUD_ONLY, split(2), ushape(3), ushape(2, 9, chunk_tokens=64), split(4, drafter="ngram", draft_tokens=3))


def among(
    count: int, world: Scene, plan: SplitPlan | None = None, spread_s: float = 5.0, **limits: object
) -> CrowdResult:
    """``count`` devices that begin spread over some seconds; each with ``plan``, or with one of ``PLANS`` in turn."""

    def device(index: int) -> Scene:
        late_s = index * spread_s / count
        return replace(world, jobs=tuple(replace(job, at_s=job.at_s + late_s) for job in world.jobs))

    crowd = CrowdScene(devices=count, device=device, cloud=world.cloud, **limits)  # type: ignore[arg-type]
    return run_crowd(crowd, lambda index: OnePlan(plan or PLANS[index % len(PLANS)]))


def test_every_job_of_every_device_is_answered_and_the_same_again() -> None:
    world = scene(jobs=jobs(2, prompt=150, new=12))
    result = among(40, world)
    assert [len(records) for records in result.records] == [2] * 40
    assert all(record.failed is None for records in result.records for record in records)
    assert result == among(40, world)


def test_the_cloud_computes_exactly_the_rows_that_its_devices_needed() -> None:
    world = scene(jobs=jobs(2, prompt=150, new=12), drafts={})
    result = among(15, world, split(4))
    # All prompt positions and all answer tokens but the last, through the layers behind the cut.
    assert result.row_layers == 15 * 2 * (150 + 11) * (LAYERS - 4)
    prices = sum(record.outcome.price or 0.0 for records in result.records for record in records)
    assert prices == pytest.approx(1e-6 * result.row_layers)
    assert all(0.0 <= ratio <= 1.0 + 1e-9 for ratio in result.busy_ratio)


def test_a_device_among_others_is_not_faster_than_alone_and_a_full_cloud_is_felt() -> None:
    world = scene(cloud=CloudScene(profile=cloud_profile(2e-3)), jobs=jobs(1, prompt=150, new=12))
    alone = run_lone(world, OnePlan(CLOUD_ONLY))[0].outcome.total_s
    few = [records[0].outcome.total_s for records in among(3, world, CLOUD_ONLY, spread_s=60.0).records]
    many = [records[0].outcome.total_s for records in among(60, world, CLOUD_ONLY, spread_s=0.5).records]
    assert few == pytest.approx([alone] * 3, rel=1e-6)
    assert min(many) >= alone * (1 - 1e-9)
    assert sum(many) / len(many) > 1.5 * alone


@pytest.mark.parametrize("dead_s", [60.0, 2.9, 0.8])
@pytest.mark.parametrize("plan", [CLOUD_ONLY, split(2), ushape(2, 9)], ids=str)
def test_a_device_by_itself_meets_an_outage_as_a_lone_one_does(plan: SplitPlan, dead_s: float) -> None:
    healthy = run_lone(scene(jobs=jobs(1, new=60)), OnePlan(plan))[0].outcome
    dies_s = 0.5 * (healthy.ttft_s + healthy.total_s)
    trace = RateTrace((0.0, dies_s, dies_s + dead_s), (1.25e6, 0.0, 1.25e6), 1000.0)
    world = scene(jobs=jobs(1, new=60), link=replace(link_scene(), up=trace, down=trace))
    alone, among_none = run_lone(world, OnePlan(plan))[0].outcome, among(1, world, plan).records[0][0].outcome
    for name in ("ttft_s", "total_s", "new_tokens", "uplink_bytes", "downlink_bytes"):
        assert getattr(among_none, name) == pytest.approx(getattr(alone, name), rel=1e-6), name
    assert alone.downlink_bytes > 0 and (dead_s < 1.0 or alone.downlink_bytes < healthy.downlink_bytes)


def test_batches_are_shared() -> None:
    world = scene(jobs=jobs(1, prompt=60, new=40))
    together, apart = among(30, world, CLOUD_ONLY, spread_s=0.1), among(30, world, CLOUD_ONLY, spread_s=600.0)
    assert together.row_layers == apart.row_layers
    assert together.batches < 0.25 * apart.batches


def test_a_cloud_that_refuses_is_asked_again_and_then_done_without() -> None:
    world = scene(cloud=CloudScene(profile=cloud_profile(2e-2)), jobs=jobs(1, prompt=400, new=8))
    result = among(40, world, CLOUD_ONLY, spread_s=0.5, load=LoadLimits(max_queue_s=0.3, max_wait_s=1.0))
    assert result.refusals > 0
    records = [records[0] for records in result.records]
    assert all(record.failed is None and record.outcome.new_tokens == 8 for record in records)
    # Some did it alone in the end, and paid the cloud nothing for the answer.
    assert any((record.outcome.price or 0.0) < 1e-6 * LAYERS * 400 for record in records)
    assert any((record.outcome.price or 0.0) >= 1e-6 * LAYERS * 400 for record in records)
    patient = among(40, world, CLOUD_ONLY, spread_s=0.5, load=LoadLimits(max_queue_s=1e3, max_wait_s=1e3))
    assert patient.refusals == patient.expired == 0


def test_the_cloud_says_how_loaded_it_is() -> None:
    world = scene(jobs=jobs(3, prompt=200, new=40, every_s=2.0), cloud=CloudScene(profile=cloud_profile(2e-3)))
    strategies = [OnePlan(split(2), Probing.ROUND_TRIP) for _ in range(40)]
    crowd = CrowdScene(devices=40, device=lambda _: world, cloud=world.cloud)
    run_crowd(crowd, strategies.__getitem__)
    hints = [one for strategy in strategies for one in strategy.told if isinstance(one, CloudHint)]
    assert hints[0].slowdown == 1.0 and hints[0].queue_s == 0.0
    assert max(hint.slowdown for hint in hints) > 1.2
    assert max(hint.queue_s for hint in hints) > 0.0


def test_a_device_that_begins_later_is_told_the_load_of_then() -> None:
    cloud = CloudScene(profile=cloud_profile(2e-3))
    busy = scene(jobs=jobs(40, prompt=100, new=60, every_s=0.5), cloud=cloud)
    late = scene(jobs=tuple(replace(job, at_s=10.0 + job.at_s) for job in jobs(1)), cloud=cloud)
    asking = OnePlan(DEVICE_ONLY, Probing.ROUND_TRIP)
    crowd = CrowdScene(devices=25, device=lambda index: busy if index else late, cloud=cloud)
    result = run_crowd(crowd, lambda index: OnePlan(split(2)) if index else asking)
    assert result.records[0][0].start_s == 10.0 and result.end_s > 12.0
    assert any(isinstance(one, CloudHint) and one.slowdown > 1.2 for one in asking.told)


def test_small_sweeps_make_long_waits() -> None:
    world = scene(jobs=jobs(1, prompt=60, new=40), cloud=CloudScene(profile=cloud_profile(1e-3)))
    wide = among(30, world, split(2), spread_s=0.1)
    narrow = among(
        30,
        world,
        split(2),
        spread_s=0.1,
        sweep=SweepLimits(max_rows=8, prefill_rows_beside_decode=4, min_prefill_rows=4, min_decode_rows=4),
        load=LoadLimits(max_queue_s=1e3, max_wait_s=1e3),
    )
    assert max(narrow.waiting) > max(wide.waiting)
    assert narrow.end_s > wide.end_s


def test_devices_that_need_no_cloud_do_not_touch_it() -> None:
    result = among(25, scene(), DEVICE_ONLY)
    assert (result.row_layers, result.refusals, result.busy_ratio) == (0, 0, ())
    alone = run_lone(scene(), OnePlan(DEVICE_ONLY))
    first = result.records[0]
    assert [record.outcome for record in first] == [record.outcome for record in alone]


def test_what_cannot_be_simulated_is_refused() -> None:
    world = scene()
    other = CrowdScene(devices=1, device=lambda _: world, cloud=CloudScene(profile=cloud_profile(1e-3)))
    with pytest.raises(InputError, match="another cloud"):
        run_crowd(other, lambda _: OnePlan(CLOUD_ONLY))

    class Seer(OnePlan):
        clairvoyant = True

    crowd = CrowdScene(devices=1, device=lambda _: world, cloud=CloudScene(profile=CLOUD))
    with pytest.raises(InputError, match="clairvoyant"):
        run_crowd(crowd, lambda _: Seer(CLOUD_ONLY))
    with pytest.raises(InputError, match="needs a device"):
        replace(crowd, devices=0)
