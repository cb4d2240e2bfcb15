"""Goal S10: everything of a step that is not the model. Up to 32 sessions, a real cloud process, two kinds of client.

A step carries one hidden state up and one token down: encode, seal, gRPC, decode, open, queue, schedule, compute,
and all of it back. What the cloud reports as compute is subtracted; the rest is overhead. Two ways to send:

* Poisson at a rate, counted from the step's intended start, so that a late generator cannot hide a slow answer;
* back to back: each session sends its next step when it has its answer. With one session that is the cost of a step on
  warm processors; with 32 it is what the whole service can carry, and the time includes waiting for the others.

The model is tiny and random: its compute must not hide the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

import numpy as np
from grpc_floor import round_trips
from pinning import pin_here, pinned_children
from random_model import SHAPES, ensure_checkpoint
from report import markdown_table, spread, write_report
from step_clients import CLIENTS, Task

from splitglm_cli.cloud_process import CloudProcess
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_edge.connection import CloudAddress
from splitglm_sims.load.stream import Target

LOADS = ((1, None), (32, None), (1, 50.0), (32, 50.0), (32, 160.0), (32, 320.0))
"""Sessions, and steps per second of all of them; None is back to back."""


def measure(target: Target, client: str, plan: SplitPlan, hidden: int, args: argparse.Namespace) -> dict[int, dict]:
    """One round over every load: figures by index into ``LOADS``."""
    row = np.random.default_rng(1).standard_normal((1, hidden), np.float32)
    found = {}
    for index, (sessions, rate) in enumerate(LOADS):
        task = Task(plans=(plan,) * sessions, row=row, steps_per_s=rate, seconds=args.seconds)
        timed = CLIENTS[client](target, task)
        overhead = (np.array(timed.total) - np.array(timed.compute)) * 1e3
        found[index] = {
            "rate": len(overhead) / args.seconds,
            "p50": float(np.percentile(overhead, 50)),
            "p90": float(np.percentile(overhead, 90)),
            "p99": float(np.percentile(overhead, 99)),
            "compute": float(np.percentile(timed.compute, 50)) * 1e3,
            "lag": float(np.percentile(timed.lag, 99)) * 1e3,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", choices=(*CLIENTS, "both"), default="both")
    parser.add_argument("--pin", action="store_true", help="cloud on core 0, client on core 1")
    parser.add_argument("--smoke", action="store_true", help="half a second each, no result file")
    args = parser.parse_args()
    if args.smoke:
        args.seconds, args.rounds = 0.5, 1
    clients = list(CLIENTS) if args.client == "both" else [args.client]
    rounds: dict[str, list[dict[int, dict]]] = {client: [] for client in clients}
    floors: dict[float | None, list[np.ndarray]] = {None: [], 50.0: []}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = ensure_checkpoint(Path(scratch) / "tiny", SHAPES["tiny"])
        with contextlib.ExitStack() as running:
            with pinned_children((0,) if args.pin else ()):
                arguments = ("--precision", "int8", "--threads", "1")
                cloud = running.enter_context(CloudProcess(str(checkpoint.directory), arguments=arguments))
            pin_here((1,) if args.pin else ())
            where = CloudAddress(address=cloud.address, key=cloud.key)
            target = Target(address=cloud.address, fingerprint=checkpoint.fingerprint, trust=where.trust())
            shape = checkpoint.config.shape
            plan = SplitPlan(layers=shape.layers, s=1, t=shape.layers, head=HeadSide.CLOUD, codec=Codec.BF16)
            for _ in range(args.rounds):  # clients in turn within a round, so that drift hits both alike
                for client in clients:
                    rounds[client].append(measure(target, client, plan, shape.hidden, args))
                for rate, found in floors.items():
                    found.append(1e3 * round_trips(rate, args.seconds, cores=(0,) if args.pin else ()))
    rows = [
        [
            client,
            str(sessions),
            "back to back" if rate is None else f"Poisson {rate:g}/s",
            *(
                spread([round_[index][figure] for round_ in rounds[client]], digits)
                for figure, digits in (("rate", 0), ("p50", 2), ("p90", 2), ("p99", 2), ("compute", 2), ("lag", 2))
            ),
        ]
        for client in clients
        for index, (sessions, rate) in enumerate(LOADS)
    ]
    for rate, found in floors.items():
        shown = (spread([float(np.percentile(times, q)) for times in found], 2) for q in (50, 90, 99))
        sent = "back to back" if rate is None else f"Poisson {rate:g}/s"
        rows.append(["gRPC echo alone", "1", sent, "", *shown, "", ""])
    sections = [
        "Device and cloud are two processes on this machine; one stream; hidden 128, bf16; steps per second are over "
        f"all sessions. p50, p90 and p99 are of a step's time less the cloud's compute; median and range of "
        f"{args.rounds} rounds of {args.seconds:g} s. The generator's own lateness is in the figures and listed beside "
        "them; the timer of asyncio alone is late by up to 1 ms. The last two rows are gRPC without anything of ours: "
        "as many bytes, counted from when they were really sent.",
        markdown_table(
            [
                *("client", "sessions", "sent", "steps/s", "p50 ms", "p90 ms", "p99 ms"),
                *("compute p50 ms", "generator lag p99 ms"),
            ],
            rows,
        ),
    ]
    packages = ("splitglm", "numpy", "onnxruntime", "grpcio", "cryptography")
    title = "S10: what a step costs besides the model"
    write_report("overhead", title, sections, packages=packages, write=not args.smoke)


if __name__ == "__main__":
    main()
