"""Every plan over every link: time to first token, tokens per second, bytes per token; and prefill over a slow uplink.

Cloud, link and device are three processes on this machine, one compute thread each for device and cloud. One prompt
of the demo model, greedy, the same for all. Plans run in turn within a repetition, so drift hits them alike. The
second table is goal S5: a 1000-token prompt at 10 Mbit/s, prefilled in chunks, against running the whole front
before sending anything.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from itertools import product

import numpy as np
from link_process import link_process
from report import markdown_table, spread, write_report

from splitglm_cli.cloud_process import CloudProcess
from splitglm_core.plan import Arm, Codec, HeadSide, Precision, Privacy, SplitPlan
from splitglm_core.ranges import LayerRange
from splitglm_core.sampling import SamplingParams
from splitglm_edge import Agent, CloudAddress, Stats
from splitglm_edge.link import CloudLink
from splitglm_edge.remote import RemoteSession
from splitglm_edge.timeouts import Timeouts
from splitglm_glm.opening import open_stack
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.stack import LayerStack
from splitglm_partitioner.request import Fixed
from splitglm_wire import codec
from splitglm_wire.device import StepDone
from splitglm_wire.frames import Reply, Rows

QUESTION = "Explain in simple words why the sky is blue during the day and red in the evening."


def plans(layers: int) -> list[tuple[str, Fixed, Codec]]:
    half, low, high = layers // 2, layers // 4, 3 * layers // 4
    return [
        ("device only", Fixed(arm=Arm.DEVICE), Codec.BF16),
        ("cloud only", Fixed(arm=Arm.CLOUD), Codec.BF16),
        (f"split {half}, bf16", Fixed(arm=Arm.SPLIT, s=half), Codec.BF16),
        (f"split {half}, int8", Fixed(arm=Arm.SPLIT, s=half), Codec.INT8),
        (f"U-shape {low}:{high}, int8", Fixed(arm=Arm.USHAPE, s=low, t=high), Codec.INT8),
        (f"U-shape {low}:{layers}, int8", Fixed(arm=Arm.USHAPE, s=low, t=layers), Codec.INT8),
    ]


def run_once(agent: Agent, fixed: Fixed, kind: Codec, tokens: int) -> Stats:
    reply = agent.generate(
        QUESTION, max_tokens=tokens, ignore_eos=True, privacy=Privacy.OPEN, fixed=fixed, codecs=(kind,)
    )
    reply.result()
    if reply.stats is None:
        raise SystemExit("a reply ended without statistics")
    return reply.stats


def sweep(args: argparse.Namespace) -> str:
    """The first table: every plan over every link."""
    rows: list[list[str]] = []
    with CloudProcess(args.model, arguments=("--precision", args.precision, "--threads", "1")) as cloud:
        for rtt_ms, mbit in product(args.rtt_ms, args.mbit):
            with (
                link_process(cloud.address, rtt_ms=rtt_ms, mbit=mbit) as address,
                open_agent(args, address, cloud.key) as agent,
            ):
                measured: dict[str, list[Stats]] = defaultdict(list)
                listed = plans(agent.profile.layers)
                for repetition in range(args.repetitions + 1):
                    for name, fixed, kind in listed:
                        stats = run_once(agent, fixed, kind, args.tokens)
                        if repetition:  # the first round loads layers and warms the caches
                            measured[name].append(stats)
                for name, _, _ in listed:
                    rows.append(row(rtt_ms, mbit, name, measured[name]))
    header = ["RTT ms", "Mbit/s", "plan", "TTFT ms", "tok/s", "bytes/token up", "down", "TTFT / predicted"]
    return markdown_table(header, rows)


def row(rtt_ms: float, mbit: float, name: str, runs: list[Stats]) -> list[str]:
    last = runs[-1]
    positions = last.prompt_tokens + last.new_tokens - 1
    ratios = [run.ttft_s / run.predicted_ttft_s for run in runs if run.predicted_ttft_s]
    return [
        f"{rtt_ms:g}",
        f"{mbit:g}",
        name,
        spread([1e3 * run.ttft_s for run in runs], 0),
        spread([run.tokens_per_s for run in runs]),
        f"{last.bytes_up / positions:.0f}",
        f"{last.bytes_down / positions:.0f}",
        spread(ratios, 2),
    ]


def sequential_prefill_s(front: LayerStack, link: CloudLink, ids: list[int], plan: SplitPlan) -> float:
    """The baseline of S5: the whole front first, then everything is sent, then the cloud answers."""
    remote = RemoteSession(lambda: link, Timeouts())
    cache = front.new_cache(plan.front, len(ids) + 1)
    started_s = time.perf_counter()
    hidden = front.forward(front.embed(np.array(ids, np.int64)), cache, plan.front)
    remote.begin(
        plan=plan, sampling=SamplingParams(), context=len(ids) + 8, keep=0, stop_ids=(), generated=(), deadline_s=None
    )
    most = codec.max_rows(plan.codec, hidden.shape[1])
    ticket = -1
    for start in range(0, len(ids), most):
        part, last = hidden[start : start + most], start + most >= len(ids)
        ticket = remote.step(
            rows_kind=Rows.HIDDEN,
            rows=len(part),
            payload=codec.encode(part, plan.codec, base=start),
            reply=Reply.TOKEN if last else Reply.ACK,
            generate=int(last),
        )
    while True:
        event = remote.wait()
        if isinstance(event, StepDone) and event.ticket == ticket:
            break
    seconds = time.perf_counter() - started_s
    remote.close()
    cache.close()
    return seconds


def prefill(args: argparse.Namespace) -> str:
    """The second table: S5."""
    rows: list[list[str]] = []
    with (
        CloudProcess(args.model, arguments=("--precision", args.precision, "--threads", "1")) as cloud,
        link_process(cloud.address, rtt_ms=40, mbit=10) as address,
        open_agent(args, address, cloud.key) as agent,
    ):
        whole = LayerRange(0, agent.profile.layers)
        front = open_stack(
            agent.checkpoint,
            Precision(args.precision),
            layers=whole,
            embedding=True,
            head=False,
            options=RuntimeOptions(threads=1),
        )
        where = CloudAddress(address=address, key=cloud.key)
        link = CloudLink.connect(address, fingerprint=agent.checkpoint.fingerprint, trust=where.trust())
        link.ping()
        layers = agent.profile.layers
        rng = np.random.default_rng(0)
        ids = rng.integers(100, agent.checkpoint.config.shape.vocab - 100, args.prompt).tolist()
        variants = [(kind, chunk) for kind in (Codec.BF16, Codec.INT8) for chunk in (32, 64, 128, 256)]
        measured: dict[tuple[Codec, int], list[float]] = defaultdict(list)
        base: list[float] = []
        for repetition in range(args.repetitions + 1):
            plan = SplitPlan(layers=layers, s=layers // 2, t=layers, head=HeadSide.CLOUD, codec=Codec.BF16)
            seconds = sequential_prefill_s(front, link, ids, plan)
            if repetition:
                base.append(seconds)
            for kind, chunk in variants:
                reply = agent.generate(
                    ids,
                    max_tokens=1,
                    privacy=Privacy.OPEN,
                    fixed=Fixed(arm=Arm.SPLIT, s=layers // 2),
                    codecs=(kind,),
                    chunk_tokens=chunk,
                )
                reply.result()
                if repetition and reply.stats is not None:
                    measured[kind, chunk].append(reply.stats.ttft_s)
        link.close()
        middle = sorted(base)[len(base) // 2]
        rows.append(["bf16", "whole front, then send", spread([1e3 * value for value in base], 0), "1.00"])
        for (kind, chunk), values in measured.items():
            ratio = [value / middle for value in values]
            rows.append(
                [kind.value, f"chunks of {chunk}", spread([1e3 * value for value in values], 0), spread(ratio, 2)]
            )
    return markdown_table(["codec", "prefill", "TTFT ms", "over the baseline"], rows)


def open_agent(args: argparse.Namespace, address: str, key: str) -> Agent:
    where = CloudAddress(address=address, key=key)
    return Agent.open(args.model, cloud=where, precision=Precision(args.precision), threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rtt-ms", type=float, nargs="+", default=[0, 20, 80])
    parser.add_argument("--mbit", type=float, nargs="+", default=[2, 10, 100])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--prompt", type=int, default=1000, help="prompt tokens of the prefill table")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="one link, few tokens, no result file")
    args = parser.parse_args()
    if args.smoke:
        args.rtt_ms, args.mbit, args.tokens, args.prompt, args.repetitions = [20], [10], 4, 200, 1
    sections = [
        f"Model {args.model}, {args.precision} on both sides, {args.tokens} new tokens, greedy; "
        "device, link and cloud are three processes, one compute thread each side. Median (range).",
        "## Every plan over every link",
        sweep(args),
        f"## S5: prefill of {args.prompt} tokens, split at half the layers, RTT 40 ms, 10 Mbit/s each way",
        prefill(args),
    ]
    packages = ("splitglm", "numpy", "onnxruntime", "grpcio", "cryptography")
    write_report("end_to_end", "End to end: plans and links", sections, packages=packages, write=not args.smoke)


if __name__ == "__main__":
    main()
