"""Goal S12: the simulator against the real system: same scene, job and plan, same instant of the link's traces.

Device, link and cloud are three processes: device and cloud pinned to a core each where there are two, the link's
process on either. The machines are measured first (``splitglm_sims.testbed.machines``), then every plan runs over every
link and prompt length, plans in turn within a repetition, and the simulator is asked about each run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pinning import pin_here, pinned_children
from report import markdown_table, spread, write_report

from splitglm_cli.cloud_process import CloudProcess
from splitglm_core.plan import Arm, Codec, Precision, SplitPlan
from splitglm_core.shapes import ModelShape
from splitglm_partitioner.arms import make_plan
from splitglm_sims.links.fitted import link_class
from splitglm_sims.testbed.bed import Run, Testbed, job_of, open_testbeds
from splitglm_sims.testbed.comparison import simulated
from splitglm_sims.testbed.machines import Machines, measure_machines
from splitglm_sims.testbed.replayed_link import ReplayedLink
from splitglm_sims.testbed.stretches import calm_offsets, emulated
from splitglm_sims.testbed.work import profiled_work, real_work
from splitglm_sims.traces import RateTrace, load_trace
from splitglm_sims.world.scene import LinkScene

TRACES = Path(__file__).parents[2] / "shared" / "traces" / "mahimahi"
SPAN_S = 20.0
GOAL = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A run and what was predicted of it: TTFT and seconds per further token, and both at the run's own pace."""

    run: Run
    ttft_s: float
    per_token_s: float
    paced_ttft_s: float
    paced_per_token_s: float


def constant(mbit: float, rtt_ms: float) -> LinkScene:
    rate = RateTrace.constant(mbit * 1e6 / 8)
    return LinkScene(up=rate, down=rate, rtt_s=rtt_ms / 1e3, window_bytes=None)


def links(smoke: bool) -> dict[str, LinkScene]:
    found = {"constant 10 Mbit/s, 40 ms": constant(10, 40)}
    if smoke:
        return found
    for name in ("wifi-poor", "lte-driving"):
        found[f"generated {name}"] = emulated(link_class(name).scene(1, 300.0))
    if TRACES.is_dir():
        up, down = (load_trace(TRACES / f"ATT-LTE-driving-2016.{way}") for way in ("up", "down"))
        found["ATT-LTE-driving-2016, 60 ms"] = LinkScene(up=up, down=down, rtt_s=0.06, window_bytes=None)
    return found


def plans(layers: int, smoke: bool) -> dict[str, SplitPlan]:
    def plan(arm: Arm, s: int = 0, t: int = layers, codec: Codec = Codec.BF16) -> SplitPlan:
        return make_plan(layers, arm, s, t, codec, 128)

    low, high = layers // 3, 2 * layers // 3
    listed = {"device": plan(Arm.DEVICE), "cloud": plan(Arm.CLOUD)}
    for codec in (Codec.BF16, Codec.INT8):
        listed |= {
            f"split {low}, {codec.value}": plan(Arm.SPLIT, low, layers, codec),
            f"split {high}, {codec.value}": plan(Arm.SPLIT, high, layers, codec),
            f"U {low}:{layers}, {codec.value}": plan(Arm.USHAPE, low, layers, codec),
            f"U {low}:{high}, {codec.value}": plan(Arm.USHAPE, low, high, codec),
        }
    return dict(list(listed.items())[:6]) if smoke else listed


def measure(bed: Testbed, machines: Machines, link: LinkScene, args: argparse.Namespace) -> Iterator[tuple]:
    """Pairs of (prompt tokens, plan's name, pairs) over one link."""
    agent = bed.agent
    shape = agent.checkpoint.config.shape
    bed.link.show(link)
    offset_s = calm_offsets(link, 1, span_s=SPAN_S)[0]
    for prompt_tokens in args.prompts:
        pairs: dict[str, list[Pair]] = defaultdict(list)
        job = job_of(prompt_tokens, args.tokens)
        listed = plans(shape.layers, args.smoke)
        for repetition in range(args.repetitions + 1):
            for name, plan in listed.items():
                run = bed.run(job, offset_s=offset_s, plan=plan, seed=repetition)
                if not repetition:
                    continue  # the first round loads layers
                if run.stats.fallbacks or run.stats.reconnects:
                    raise SystemExit(f"{name}: the reply did not go through at once: {run.stats.fallbacks}")
                plain, paced = (simulated(machines, shape, link, run, paced=flag).outcome for flag in (False, True))
                before_s = machines.start_s + (machines.open_s if plan.arm is not Arm.DEVICE else 0.0)
                pairs[name].append(
                    Pair(
                        run=run,
                        ttft_s=plain.ttft_s + before_s,
                        per_token_s=plain.per_token_s,
                        paced_ttft_s=paced.ttft_s + before_s,
                        paced_per_token_s=paced.per_token_s,
                    )
                )
        for name, kept in pairs.items():
            yield prompt_tokens, name, kept


def errors(pairs: list[Pair], *, paced: bool) -> tuple[float, float]:
    """Relative errors of the predicted medians: time to first token, tokens per second."""
    real_ttft_s = median(pair.run.outcome.ttft_s for pair in pairs)
    real_rate = median(pair.run.stats.tokens_per_s for pair in pairs)
    ttft_s = median(pair.paced_ttft_s if paced else pair.ttft_s for pair in pairs)
    rate = median(1 / (pair.paced_per_token_s if paced else pair.per_token_s) for pair in pairs)
    return ttft_s / real_ttft_s - 1, rate / real_rate - 1


def row(link: str, prompt: int, name: str, pairs: list[Pair]) -> list[str]:
    plain, paced = errors(pairs, paced=False), errors(pairs, paced=True)
    return [
        link,
        str(prompt),
        name,
        spread([1e3 * pair.run.outcome.ttft_s for pair in pairs], 0),
        f"{1e3 * median(pair.ttft_s for pair in pairs):.0f}",
        f"{100 * plain[0]:+.1f}",
        f"{100 * paced[0]:+.1f}",
        spread([pair.run.stats.tokens_per_s for pair in pairs]),
        f"{median(1 / pair.per_token_s for pair in pairs):.1f}",
        f"{100 * plain[1]:+.1f}",
        f"{100 * paced[1]:+.1f}",
    ]


def summary(cells: list[list[Pair]]) -> str:
    rows = []
    for label, paced in (("machines as measured before", False), ("machines at the run's own pace", True)):
        for which, what in enumerate(("TTFT", "tokens/s")):
            sizes = sorted(abs(errors(cell, paced=paced)[which]) for cell in cells)
            within = sum(size <= GOAL for size in sizes)
            bias = median(errors(cell, paced=paced)[which] for cell in cells)
            share = f"{100 * within / len(sizes):.0f} % ({within} of {len(sizes)})"
            rows.append(
                [label, what, f"{100 * median(sizes):.1f}", f"{100 * sizes[-1]:.1f}", f"{100 * bias:+.1f}", share]
            )
    header = ["prediction", "of", "median error %", "largest %", "bias %", f"within {100 * GOAL:.0f} %"]
    return markdown_table(header, rows)


def terms(machines: Machines, cells: list[list[Pair]], model: ModelShape) -> str:
    """What was measured of the machines, and how computing in the runs compares with it."""
    growth = [
        times.prefill_s_per_token_per_1k_context or 0.0
        for times in (machines.device.active.times, machines.cloud.times)
    ]
    rows = [
        ["pace of the device in real replies, over its profile", f"{machines.device_pace:.3f}", "simulated"],
        ["pace of the cloud", f"{machines.cloud_pace:.3f}", "simulated"],
        ["prefill per token, layer and 1000 of context: device", f"{1e6 * growth[0]:.1f} us", "simulated"],
        ["the same: cloud", f"{1e6 * growth[1]:.1f} us", "simulated"],
        ["exchange: neither model nor link", f"{1e3 * machines.overhead_s:.2f} ms", "simulated"],
        ["wait of a step in the cloud", f"{1e3 * machines.step_queue_s:.2f} ms", "simulated"],
        ["gap between tokens of a cloud alone", f"{1e3 * machines.stream_gap_s:.2f} ms", "simulated, as its queue"],
        ["start of a reply", f"{1e3 * machines.start_s:.2f} ms", "added to the simulator's TTFT"],
        ["opening a session", f"{1e3 * machines.open_s:.2f} ms", "added to the simulator's TTFT"],
        ["framing per exchange, up", f"{machines.frame_up_bytes:.0f} bytes", "simulated, at mean rates"],
        ["framing per exchange, down", f"{machines.frame_down_bytes:.0f} bytes", "simulated, at mean rates"],
    ]
    for place, pace in (("device", machines.device_pace), ("cloud", machines.cloud_pace)):
        ratios = []
        for run in (pair.run for cell in cells for pair in cell):
            here = getattr(real_work(run), f"{place}_s")
            profiled = profiled_work(model, machines.device, machines.cloud, run.plan, run.job)
            if here and getattr(profiled, f"{place}_s"):
                ratios.append(here / pace / getattr(profiled, f"{place}_s"))
        rows.append(
            [f"computing in the {place}, over what was measured before", spread(ratios, 2), "1 where nothing changed"]
        )
    return markdown_table(["term", "measured", "where it is"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 400])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--no-pin", action="store_true", help="leave device and cloud to the system")
    parser.add_argument("--smoke", action="store_true", help="one link, short, no result file")
    args = parser.parse_args()
    if args.smoke:
        args.prompts, args.tokens, args.repetitions = [32], 4, 1
    pinned = (os.cpu_count() or 1) > 1 and not args.no_pin
    with contextlib.ExitStack() as running:
        with pinned_children((0,) if pinned else ()):
            arguments = ("--precision", args.precision, "--threads", "1")
            cloud = running.enter_context(CloudProcess(args.model, arguments=arguments))
        link = running.enter_context(ReplayedLink(cloud.address))
        pin_here((1,) if pinned else ())
        precision = Precision(args.precision)
        (bed,) = running.enter_context(open_testbeds(args.model, link, key=cloud.key, precision=precision))
        machines = measure_machines(bed, repetitions=1 if args.smoke else 7)
        rows, cells = [], []
        for name, scene in links(args.smoke).items():
            for prompt, plan, pairs in measure(bed, machines, scene, args):
                rows.append(row(name, prompt, plan, pairs))
                cells.append(pairs)
        named = terms(machines, cells, bed.agent.checkpoint.config.shape)
    header = ["link", "prompt", "plan", "TTFT ms", "predicted", "error %", "at its pace %"]
    header += ["tok/s", "predicted", "error %", "at its pace %"]
    sections = [
        f"Model {args.model}, {args.precision} on both sides, {args.tokens} new tokens, one compute thread each side, "
        f"{'device and cloud pinned to a core each' if pinned else 'not pinned'}. Each cell: median (range) of "
        f"{args.repetitions} runs, the link's traces from the same instant, the first after which neither direction "
        f"falls silent for {SPAN_S:g} s. Predicted: the simulator's median at the instants at which the runs really "
        "began. Errors are relative to the real median. *At its pace*: the simulator is told how much slower than "
        "profiled device and cloud computed in that very run: what is left is the link's, the exchanges' and its own.",
        "## Summary",
        summary(cells),
        "## Terms measured on the real machines",
        named,
        "## Every cell",
        markdown_table(header, rows),
    ]
    packages = ("splitglm", "numpy", "simpy", "onnxruntime", "grpcio")
    write_report(
        "sim_vs_real", "S12: simulator against the real system", sections, packages=packages, write=not args.smoke
    )


if __name__ == "__main__":
    main()
