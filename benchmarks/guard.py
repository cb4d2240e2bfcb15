"""Goal S13 on the real system: the agent's own policy against device-only and cloud-only, never worse than 1.05 times.

Three agents share a device, its layers in memory, a cloud and a link, and know nothing of each other: one decides for
itself, one keeps everything on the device, one leaves everything to the cloud. Each request is asked of all three, in
changing order, from the same instant of the link's traces; what counts is the time until its last token, summed over
the requests.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pinning import pin_here, pinned_children
from report import markdown_table, write_report

from splitglm_cli.cloud_process import CloudProcess
from splitglm_core.plan import Arm, Codec, Precision, SplitPlan
from splitglm_partitioner.arms import make_plan
from splitglm_sims.links.fitted import link_class
from splitglm_sims.study.statistics import ratio_of_sums
from splitglm_sims.testbed.bed import Run, Testbed, job_of, open_testbeds
from splitglm_sims.testbed.replayed_link import ReplayedLink
from splitglm_sims.testbed.stretches import calm_offsets, emulated
from splitglm_sims.traces import load_trace
from splitglm_sims.world.scene import Job, LinkScene

TRACES = Path(__file__).parents[2] / "shared" / "traces" / "mahimahi"
GENERATED = ("wifi-poor", "lte-driving", "ethernet-home")
SPAN_S = 20.0
GOAL = 1.05
SIDES = ("policy", "device", "cloud")


@dataclass(frozen=True, slots=True)
class Asked:
    """Replies of the three sides to the same requests, in order."""

    runs: dict[str, list[Run]] = field(default_factory=lambda: {side: [] for side in SIDES})

    def seconds(self, side: str, *, first: bool = False) -> np.ndarray:
        return np.array([run.outcome.ttft_s if first else run.outcome.total_s for run in self.runs[side]])


def requests(count: int, seed: int) -> list[Job]:
    """Prompts of 16 to 512 tokens and answers of 8 to 48, evenly on a logarithmic scale."""
    rng = np.random.default_rng(seed)

    def between(low: int, high: int) -> int:
        return round(math.exp(rng.uniform(math.log(low), math.log(high))))

    return [job_of(between(16, 512), between(8, 48)) for _ in range(count)]


def ask(beds: dict[str, Testbed], link: LinkScene, jobs: list[Job], offsets: tuple[float, ...]) -> Asked:
    """Every request of every side, from the same instants."""
    layers = beds["policy"].agent.profile.layers
    plans: dict[str, SplitPlan | None] = {
        "policy": None,
        "device": make_plan(layers, Arm.DEVICE, layers, layers, Codec.BF16, 128),
        "cloud": make_plan(layers, Arm.CLOUD, 0, layers, Codec.BF16, 128),
    }
    beds["policy"].link.show(link)
    for side in SIDES:  # the first reply loads layers and connects
        beds[side].run(job_of(16, 4), offset_s=offsets[0], plan=plans[side], seed=10_000)
    asked = Asked()
    for index, (job, offset_s) in enumerate(zip(jobs, offsets, strict=True)):
        for turn in range(len(SIDES)):
            side = SIDES[(index + turn) % len(SIDES)]
            asked.runs[side].append(beds[side].run(job, offset_s=offset_s, plan=plans[side], seed=index))
    return asked


def row(name: str, asked: Asked) -> list[str]:
    totals = {side: float(asked.seconds(side).sum()) for side in SIDES}
    better = min(("device", "cloud"), key=totals.__getitem__)
    ratio = ratio_of_sums(asked.seconds("policy"), asked.seconds(better))
    first = ratio_of_sums(asked.seconds("policy", first=True), asked.seconds(better, first=True))
    arms = Counter(run.plan.arm.value for run in asked.runs["policy"])
    lost = sum(bool(run.stats.fallbacks) for side in SIDES for run in asked.runs[side])
    return [
        name,
        *(f"{totals[side]:.1f}" for side in SIDES),
        better,
        f"{ratio.estimate:.3f} ({ratio.low:.3f}-{ratio.high:.3f})",
        f"{first.estimate:.3f}",
        ", ".join(f"{arm} {count}" for arm, count in arms.most_common()),
        str(lost),
        "met" if ratio.estimate <= GOAL else "missed",
    ]


def links(smoke: bool) -> dict[str, LinkScene]:
    found = {f"generated {name}": emulated(link_class(name).scene(1, 300.0)) for name in GENERATED[: 1 if smoke else 3]}
    if TRACES.is_dir() and not smoke:
        up, down = (load_trace(TRACES / f"ATT-LTE-driving-2016.{way}") for way in ("up", "down"))
        found["ATT-LTE-driving-2016, 60 ms"] = LinkScene(up=up, down=down, rtt_s=0.06, window_bytes=None)
    return found


def every_instant(scene: LinkScene, count: int) -> tuple[float, ...]:
    """Instants spread evenly over the traces, whatever happens there."""
    return tuple(index * scene.up.period_s / count for index in range(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-pin", action="store_true", help="leave device and cloud to the system")
    parser.add_argument("--smoke", action="store_true", help="one link, three requests, no result file")
    args = parser.parse_args()
    if args.smoke:
        args.requests = 3
    pinned = (os.cpu_count() or 1) > 1 and not args.no_pin
    precision = Precision(args.precision)
    with contextlib.ExitStack() as running:
        with pinned_children((0,) if pinned else ()):
            arguments = ("--precision", args.precision, "--threads", "1")
            cloud = running.enter_context(CloudProcess(args.model, arguments=arguments))
        link = running.enter_context(ReplayedLink(cloud.address))
        pin_here((1,) if pinned else ())
        opened = open_testbeds(args.model, link, key=cloud.key, count=len(SIDES), precision=precision)
        beds = dict(zip(SIDES, running.enter_context(opened), strict=True))
        rows = []
        for name, scene in links(args.smoke).items():
            jobs = requests(args.requests, args.seed)
            rows.append(row(name, ask(beds, scene, jobs, calm_offsets(scene, args.requests, span_s=SPAN_S))))
            if name.startswith("ATT"):
                rows.append(row(f"{name}, any instant", ask(beds, scene, jobs, every_instant(scene, args.requests))))
    header = [
        "link",
        "policy s",
        "device s",
        "cloud s",
        "better",
        "policy / better (95 %)",
        "TTFT",
        "chosen",
        "fell back",
    ]
    sections = [
        f"Model {args.model}, {args.precision} on both sides, one compute thread each, "
        f"{'device and cloud pinned to a core each' if pinned else 'not pinned'}; {args.requests} requests a link, "
        "prompts of 16 to 512 tokens, answers of 8 to 48. Seconds are sums over the requests, the policy's probes and "
        "deciding included. The emulated links have no jitter, no resting radio and no slow start. Requests begin at "
        f"instants of the traces after which neither direction falls silent for {SPAN_S:g} s (*any instant*: evenly "
        "spread, outages included), the same for all three. *Better* is the side with the smaller sum. The interval is "
        f"a bootstrap over requests. *TTFT* is the same ratio of the times to the first token. The goal is at most "
        f"{GOAL:g}.",
        markdown_table([*header, f"<= {GOAL:g}"], rows),
    ]
    packages = ("splitglm", "numpy", "onnxruntime", "grpcio")
    write_report(
        "guard", "S13: the policy against the better single side", sections, packages=packages, write=not args.smoke
    )


if __name__ == "__main__":
    main()
