"""Goal S10: everything of a step that is not the model. 32 sessions, Poisson arrivals, a real cloud process.

A step carries one hidden state up and one token down: encode, seal, gRPC, decode, open, queue, schedule, compute,
and all of it back. What the cloud reports as compute is subtracted; the rest is overhead, counted from the step's
intended start, so a late generator cannot hide a slow answer. The model is tiny and random: its compute must not
hide the rest.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from random_model import SHAPES, ensure_checkpoint
from report import markdown_table, write_report

from splitglm_cli.cloud_process import CloudProcess
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_edge.connection import CloudAddress
from splitglm_edge.link import CloudLink
from splitglm_edge.remote import RemoteSession
from splitglm_edge.timeouts import Timeouts
from splitglm_glm.checkpoint import Checkpoint
from splitglm_wire import codec
from splitglm_wire.device import StepDone
from splitglm_wire.frames import Reply, Rows


def one_step(remote: RemoteSession, row: np.ndarray, plan: SplitPlan) -> float:
    """Run one step; returns the cloud's compute seconds."""
    payload = codec.encode(row, plan.codec, base=remote.length)
    remote.step(rows_kind=Rows.HIDDEN, rows=1, payload=payload, reply=Reply.TOKEN, generate=1)
    while True:
        event = remote.wait()
        if isinstance(event, StepDone):
            return event.compute_s


def session_load(
    link: CloudLink,
    plan: SplitPlan,
    hidden: int,
    arrivals_s: np.ndarray,
    start_s: float,
    out: list[tuple[float, float]],
) -> None:
    """Steps of one session at their intended times; appends (overhead, lag of the generator)."""
    remote = RemoteSession(lambda: link, Timeouts())
    remote.begin(plan=plan, sampling=SamplingParams(), context=4096, keep=0, stop_ids=(), generated=(), deadline_s=None)
    row = np.random.default_rng(1).standard_normal((1, hidden), np.float32)
    one_step(remote, row, plan)
    for arrival_s in arrivals_s:
        intended_s = start_s + arrival_s
        time.sleep(max(0.0, intended_s - time.perf_counter()))
        lag_s = time.perf_counter() - intended_s
        compute_s = one_step(remote, row, plan)
        out.append((time.perf_counter() - intended_s - compute_s, lag_s))
    remote.close()


def measure(link: CloudLink, checkpoint: Checkpoint, sessions: int, rate: float, seconds: float) -> list[str]:
    shape = checkpoint.config.shape
    plan = SplitPlan(layers=shape.layers, s=1, t=shape.layers, head=HeadSide.CLOUD, codec=Codec.BF16)
    rng = np.random.default_rng(0)
    results: list[tuple[float, float]] = []
    start_s = time.perf_counter() + 1.0
    threads = []
    for _ in range(sessions):
        gaps = rng.exponential(sessions / rate, int(2 * seconds * rate / sessions) + 8)
        arrivals_s = np.cumsum(gaps)
        arrivals_s = arrivals_s[arrivals_s < seconds]
        threads.append(
            threading.Thread(target=session_load, args=(link, plan, shape.hidden, arrivals_s, start_s, results))
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    overhead = np.array([value for value, _ in results]) * 1e3
    lag = np.array([value for _, value in results]) * 1e3
    return [
        str(sessions),
        f"{len(results) / seconds:.0f}",
        f"{np.percentile(overhead, 50):.2f}",
        f"{np.percentile(overhead, 90):.2f}",
        f"{np.percentile(overhead, 99):.2f}",
        f"{np.percentile(lag, 99):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--smoke", action="store_true", help="two seconds, no result file")
    args = parser.parse_args()
    seconds = 2.0 if args.smoke else args.seconds
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = ensure_checkpoint(Path(scratch) / "tiny", SHAPES["tiny"])
        with CloudProcess(str(checkpoint.directory), arguments=("--precision", "int8", "--threads", "1")) as cloud:
            where = CloudAddress(address=cloud.address, key=cloud.key)
            link = CloudLink.connect(where.address, fingerprint=checkpoint.fingerprint, trust=where.trust())
            link.ping()
            for sessions, rate in ((1, 50.0), (32, 50.0), (32, 160.0), (32, 320.0)):
                rows.append(measure(link, checkpoint, sessions, rate, seconds))
            link.close()
    sections = [
        "Device and cloud are two processes on this machine; one stream; hidden 128, bf16; steps per second are over "
        "all sessions. The generator's own lateness is in the figures and listed beside them.",
        markdown_table(["sessions", "steps/s", "p50 ms", "p90 ms", "p99 ms", "generator lag p99 ms"], rows),
    ]
    packages = ("splitglm", "numpy", "onnxruntime", "grpcio", "cryptography")
    title = "S10: what a step costs besides the model"
    write_report("overhead", title, sections, packages=packages, write=not args.smoke)


if __name__ == "__main__":
    main()
