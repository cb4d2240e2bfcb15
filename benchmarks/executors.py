"""What the way to an engine worker and back costs: ``python benchmarks/executors.py``.

A step goes to an engine whose runner computes nothing and comes back: to a thread of this process, to a worker process
with payloads in shared memory, and to a worker process with payloads inside the messages. The three take turns. A round
trip ends where its answer is heard, on the executor's own thread.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from random_model import Sizes, ensure_checkpoint
from report import markdown_table, write_report

from splitglm_cloud.engine.events import Event, Owner
from splitglm_cloud.execution.building import build
from splitglm_cloud.execution.facts import EngineSpec
from splitglm_cloud.execution.inline import InlineExecutor
from splitglm_cloud.execution.payloads import INLINE_BYTES
from splitglm_cloud.execution.process import ProcessExecutor
from splitglm_core.plan import Codec, HeadSide, SplitPlan
from splitglm_core.sampling import SamplingParams
from splitglm_wire import codec
from splitglm_wire.actions import Configure, Output
from splitglm_wire.frames import Reply, Rows, Step

HIDDEN, CONTEXT = 576, 8000
SIZES = Sizes(hidden=HIDDEN, layers=3, heads=4, kv_heads=2, head_dim=32, intermediate=64, vocab=512)
PLAN = SplitPlan(layers=3, s=1, t=2, head=HeadSide.DEVICE, codec=Codec.BF16)
ROWS = (1, 4, 14, 28, 57, 228, 910)
"""Of 1152 bytes each: from one token of the demo model to a megabyte."""
NEVER_BYTES = 1 << 30
PATIENCE_S = 60.0


class Lane:
    """One executor with one session; its answers are timed where they are heard."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard_s = 0.0
        self._heard = threading.Event()
        self._seq = self._base = 0

    def open(self, executor: InlineExecutor | ProcessExecutor) -> None:
        self.executor = executor
        executor.start()
        config = Configure(
            plan=PLAN,
            sampling=SamplingParams(),
            generated=(),
            stop_ids=(),
            context=CONTEXT,
            keep=0,
            deadline_ms=0,
        )
        executor.configure(1, config, Owner())

    def emit(self, session: int, event: Event) -> None:
        self.heard_s = time.perf_counter()
        if not isinstance(event, Output):
            raise SystemExit(f"a step failed: {event}")
        self._heard.set()

    def on_lost(self, sessions: Sequence[int]) -> None:
        raise SystemExit("a worker was lost")

    def round_trip_s(self, payload: bytes, rows: int) -> float:
        if self._base + rows > CONTEXT:
            self.executor.cut(1, 0)
            self._base = 0
        self._seq += 1
        reply = Reply.LAST_HIDDEN if rows == 1 else Reply.ALL_HIDDEN
        step = Step(
            handle=1,
            fence=1,
            seq=self._seq,
            base=self._base,
            rows_kind=Rows.HIDDEN,
            rows=rows,
            reply=reply,
            generate=0,
            payload=payload,
        )
        self._base += rows
        self._heard.clear()
        started_s = time.perf_counter()
        self.executor.submit(1, step)
        if not self._heard.wait(PATIENCE_S):
            raise SystemExit("no answer")
        return self.heard_s - started_s

    def cpu_s(self) -> float:
        """Processor time of this process and of the worker."""
        spent = time.process_time()
        if isinstance(self.executor, ProcessExecutor):
            worker = psutil.Process(self.executor.workers()[0].pid).cpu_times()
            spent += worker.user + worker.system
        return spent


def lanes(model: Path) -> list[Lane]:
    spec = EngineSpec(model=str(model), runner="null_runner:null", threads=1)
    inline, shared, messages = Lane("thread"), Lane("process, shared memory"), Lane("process, in messages")
    inline.open(InlineExecutor(build(spec).make_engine, inline.emit, inline.on_lost))
    shared.open(ProcessExecutor(spec, shared.emit, shared.on_lost, inline_bytes=0))
    messages.open(ProcessExecutor(spec, messages.emit, messages.on_lost, inline_bytes=NEVER_BYTES))
    return [inline, shared, messages]


def table(running: list[Lane], repeats: int, rounds: int) -> str:
    out = []
    for rows in ROWS:
        hidden = np.random.default_rng(0).standard_normal((rows, HIDDEN), np.float32)
        payload = codec.encode(hidden, Codec.BF16, base=0)
        each = max(3, repeats // rounds // (1 if rows < 100 else 10))
        spent: list[list[float]] = [[] for _ in running]
        cpu = [0.0 for _ in running]
        for _ in range(rounds):
            for index, lane in enumerate(running):
                lane.round_trip_s(payload, rows)
                before_s = lane.cpu_s()
                spent[index] += [lane.round_trip_s(payload, rows) for _ in range(each)]
                cpu[index] += lane.cpu_s() - before_s
        base = np.median(spent[0])
        for index, lane in enumerate(running):
            p50, p99 = np.percentile(spent[index], [50, 99])
            cells = (f"{1e6 * p50:.0f}", f"{1e6 * p99:.0f}", f"{p50 / base:.2f}")
            used = f"{1e6 * cpu[index] / len(spent[index]):.0f}"
            out.append((f"{len(payload):,}", lane.name, *cells, used, f"{len(spent[index]):,}"))
    header = ("payload each way, bytes", "engine in", "p50 us", "p99 us", "p50 / thread", "CPU us", "round trips")
    return markdown_table(header, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--smoke", action="store_true", help="a few round trips, no result file")
    args = parser.parse_args()
    # Workers import the runner that lies beside this script.
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryDirectory() as directory:
        ensure_checkpoint(Path(directory) / "model", SIZES)
        running = lanes(Path(directory) / "model")
        try:
            text = table(running, 40 if args.smoke else args.repeats, 2 if args.smoke else 20)
        finally:
            for lane in running:
                lane.executor.stop(5.0)
    what = (
        "One session, one step at a time, the same payload up and down in bf16; decoding and encoding it are part of "
        "every row. CPU is that of this process and of the worker together; the worker's is counted in ticks of "
        f"{1000 // os.sysconf('SC_CLK_TCK')} ms. The product sends payloads of up to {INLINE_BYTES:,} bytes in "
        "messages and larger ones through shared memory."
    )
    packages = ("splitglm", "pyzmq", "msgspec", "numpy")
    write_report(
        "executors", "The way to an engine worker and back", [what, text], packages=packages, write=not args.smoke
    )


if __name__ == "__main__":
    main()
