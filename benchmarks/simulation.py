"""How fast the simulated worlds run: ``python benchmarks/simulation.py`` prints one table.

Each row is a world of its own in a process of its own, on one core: lone devices under one plan each, under the
product's advisor and compared with hindsight, then crowds that share a cloud. Times are processor seconds of that
process, so that others at work on the machine count little; building the scenes is not timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from splitglm_core.plan import Codec, HeadSide, Privacy, SplitPlan
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.link_estimator import Probing
from splitglm_partitioner.observations import Observation
from splitglm_sims.links.fitted import link_class
from splitglm_sims.presets.machines import cloud_preset, device_preset
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.registry import make_strategy
from splitglm_sims.strategies.strategy import Strategy, Task
from splitglm_sims.world.crowd import CrowdScene, run_crowd
from splitglm_sims.world.lone import run_lone
from splitglm_sims.world.record import Record
from splitglm_sims.world.scene import CloudScene, DeviceScene, Job, Scene

sys.path.insert(0, str(Path(__file__).parent))
from report import markdown_table, write_report

GOAL_PER_HOUR = 1_000_000
DEVICE, CLOUD, LINK = "edge-1.5b-laptop", "gpu-assumed", "4g-city"
SEED = 4
DRAFTS = (DraftStatistics(name="lookup", s_per_token=1e-5, survival=(0.5, 0.3, 0.2, 0.1)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one row found."""

    requests: int
    tokens: int
    failed: int
    seconds: float
    world_s: float
    events: int | None = None
    busy_ratio: float | None = None


class OnePlan:
    """Always the same plan, and no interest in what comes of it."""

    clairvoyant = False

    def __init__(self, plan: SplitPlan) -> None:
        self._plan = plan

    def probe(self, task: Task) -> Probing:
        return Probing.NONE

    def choose(self, task: Task) -> SplitPlan:
        return self._plan

    def observe(self, observation: Observation) -> None:
        """Nothing to learn."""


def plans(layers: int) -> dict[str, SplitPlan]:
    split = SplitPlan(layers=layers, s=2, t=layers, head=HeadSide.CLOUD, codec=Codec.INT8)
    return {
        "device": SplitPlan.device_only(layers),
        "cloud": SplitPlan.cloud_only(layers),
        "split": split,
        "split, drafts of 3": replace(split, drafter="lookup", draft_tokens=3),
        "U-shape": replace(split, head=HeadSide.DEVICE),
    }


def jobs(count: int, every_s: float, device: int = 0) -> tuple[Job, ...]:
    """Poisson arrivals; prompts of 40 to 600 tokens, answers of 16 to 112."""
    rng = np.random.default_rng([SEED, device])
    at_s = np.cumsum(rng.exponential(every_s, count))
    prompts, answers = rng.integers(40, 601, count), rng.integers(16, 113, count)
    return tuple(
        Job(
            at_s=float(at_s[i]),
            prompt_tokens=int(prompts[i]),
            new_tokens=int(answers[i]),
            max_new_tokens=128,
            genre="chat",
            conversation=i,
            privacy=Privacy.OPEN,
        )
        for i in range(count)
    )


def world(count: int, every_s: float) -> Scene:
    """A lone device on a link whose rate changes."""
    preset = device_preset(DEVICE)
    return Scene(
        model=preset.shape,
        device=DeviceScene(profile=preset.profile(), jitter=0.05),
        link=link_class(LINK).scene(SEED, 600.0),
        cloud=CloudScene(profile=cloud_preset(CLOUD).profile(preset.model)),
        jobs=jobs(count, every_s),
        drafts={"chat": DRAFTS},
        seed=SEED,
    )


def lone(count: int, make: Callable[[Scene], Strategy], *, compare: bool = False) -> Measured:
    scene = world(count, 30.0)
    strategy = make(scene)
    began_s = time.process_time()
    records = run_lone(scene, strategy, compare=compare)
    return measured(records, time.process_time() - began_s)


def crowd(devices: int, each: int, every_s: float, make: Callable[[Scene, int], Strategy]) -> Measured:
    base = world(1, every_s)
    scenes = [
        replace(base, jobs=jobs(each, every_s, i + 1), link=replace(base.link, offset_s=600.0 * i / devices))
        for i in range(devices)
    ]
    strategies = [make(scene, i) for i, scene in enumerate(scenes)]
    began_s = time.process_time()
    found = run_crowd(CrowdScene(devices=devices, device=scenes.__getitem__, cloud=base.cloud), strategies.__getitem__)
    seconds = time.process_time() - began_s
    records = tuple(record for records in found.records for record in records)
    busy = sum(found.busy_ratio) / len(found.busy_ratio) if found.busy_ratio else 0.0
    return replace(measured(records, seconds), events=found.events, busy_ratio=busy)


def measured(records: tuple[Record, ...], seconds: float) -> Measured:
    return Measured(
        requests=len(records),
        tokens=sum(record.outcome.new_tokens for record in records),
        failed=sum(record.failed is not None for record in records),
        seconds=seconds,
        world_s=max(record.start_s + record.outcome.total_s for record in records),
    )


def fixed(name: str) -> Callable[..., Strategy]:
    return lambda scene, *_: OnePlan(plans(scene.model.layers)[name])


def advised(scene: Scene, index: int = 0) -> Strategy:
    return make_strategy("splitglm", situation_facts=Facts.of(scene), seed=SEED + index)


def mixed(scene: Scene, index: int) -> Strategy:
    """Devices of all plans in equal parts."""
    every = list(plans(scene.model.layers).values())
    return OnePlan(every[index % len(every)])


def cases(smoke: bool) -> dict[str, tuple[int, Callable[[], Measured]]]:
    """By name: how many devices, and what to run."""
    n, many = (20, 20) if smoke else (2000, 1000)
    out: dict[str, tuple[int, Callable[[], Measured]]] = {}
    for name in plans(4):
        out[f"lone, {name}"] = 1, lambda name=name: lone(n, fixed(name))
    out["lone, product"] = 1, lambda: lone(n // 4, advised)
    out["lone, cloud, compared"] = 1, lambda: lone(max(5, n // 20), fixed("cloud"), compare=True)
    out["crowd, device"] = many, lambda: crowd(many, 4, 60.0, fixed("device"))
    out["crowd, cloud"] = many, lambda: crowd(many, 4, 60.0, fixed("cloud"))
    out["crowd, split"] = many, lambda: crowd(many, 4, 60.0, fixed("split"))
    out["crowd, all plans"] = 10 * many, lambda: crowd(10 * many, 1, 600.0, mixed)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="few devices and requests, no result file")
    parser.add_argument("--case", help="run one world and print its figures as JSON; what each row's process does")
    args = parser.parse_args()
    if args.case:
        figures = cases(args.smoke)[args.case][1]()
        print(json.dumps(asdict(figures) | {"rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
        return
    rows = []
    for name, (devices, _) in cases(args.smoke).items():
        command = [sys.executable, __file__, "--case", name, *(["--smoke"] if args.smoke else [])]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        figures = json.loads(printed)
        rss_mib = figures.pop("rss_kib") / 1024
        rows.append(row(name, devices, Measured(**figures), rss_mib))
    header = ("world", "devices", "requests", "tokens", "failed", "CPU s", "requests/s", "tokens/s", "events/s")
    table = markdown_table((*header, "million requests/h", "cloud busy", "peak RSS MiB"), rows)
    what = (
        f"Device {DEVICE}, cloud {CLOUD}, link {LINK}. Prompts of 40 to 600 tokens, answers of 16 to 112. "
        "Events are those of the crowd's clock; what happens while nothing else can needs none. "
        "A lone device's reply is arithmetic between two events. "
        f"Goal: {GOAL_PER_HOUR / 1e6:g} million requests an hour on one core; 10,000 devices in one world."
    )
    write_report(
        "simulation",
        "Speed of the simulated worlds",
        [what, table],
        packages=("splitglm", "simpy", "numpy"),
        write=not args.smoke,
    )


def row(name: str, devices: int, figures: Measured, rss_mib: float) -> tuple[object, ...]:
    rate = figures.requests / figures.seconds
    return (
        name,
        devices,
        figures.requests,
        figures.tokens,
        figures.failed,
        f"{figures.seconds:.2f}",
        f"{rate:.0f}",
        f"{figures.tokens / figures.seconds:.0f}",
        "-" if figures.events is None else f"{figures.events / figures.seconds:.0f}",
        f"{rate * 3600 / 1e6:.2f}",
        "-" if figures.busy_ratio is None else f"{figures.busy_ratio:.0%}",
        f"{rss_mib:.0f}",
    )


if __name__ == "__main__":
    main()
