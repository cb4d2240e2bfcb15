"""A soak: a real server under random arrivals, cancels, disconnects, evictions and (with worker processes) kills.

The load is the shipped scenario `soak-mix` on a tiny random model and a small KV budget. Every few seconds memory,
threads, file descriptors and the server's own resource gauges are written down. When the load has ended and everybody
has gone, each of these must hold, or the run fails:

* every resource gauge is zero: sessions, streams, steps and rows waiting, riding, engine sessions, KV bytes;
* threads and file descriptors are back to what they were before the load, but for a stated few;
* memory over the last half of the load grows slower than a stated bound. What sessions hold for a moment is no growth,
  so the slope is that of the least memory in each of ten stretches (Theil-Sen: the median of the slopes between all
  pairs, which a single jump does not move). Below half an hour of load the bound says little;
* no session waited for an answer until its patience ended.

`--leak` is the negative control: the generator never closes a part of its sessions and the server keeps them; the run
must then fail, or the checks are blind.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import signal
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import psutil
from random_model import SHAPES, ensure_checkpoint
from report import RESULTS, markdown_table, write_report

from splitglm_cli.cloud_process import CloudProcess
from splitglm_core import telemetry as names
from splitglm_edge.connection import CloudAddress
from splitglm_glm.checkpoint import Checkpoint
from splitglm_sims.load.generator import Model
from splitglm_sims.load.record import Outcome
from splitglm_sims.load.result import HEADER, LoadResult, table, verdict
from splitglm_sims.load.run import run_scenario
from splitglm_sims.load.scenario import Scenario, load_scenario
from splitglm_sims.load.stream import Target

GAUGES = (
    *(names.SESSIONS_OPEN, names.STREAMS_OPEN, names.STEPS_WAITING, names.ROWS_WAITING, names.STEPS_RIDING),
    *(names.ENGINE_SESSIONS, names.KV_BYTES),
)
COUNTERS = (names.EVICTIONS_TOTAL, names.PREEMPTIONS_TOTAL, names.REBUILDS_TOTAL, names.WORKER_RESTARTS_TOTAL)
SESSION_TTL_S = 2.0
DRAIN_S = 30.0
"""Everything a device left behind must be gone by then: its sessions live for ``SESSION_TTL_S``."""
STRETCHES = 10
MORE_THREADS, MORE_FDS = 8, 8
"""Above the idle server's: pools that are filled on first use."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at one moment: it and its worker processes together."""

    at_s: float
    rss_mib: float
    threads: int
    fds: int
    gauges: dict[str, float]


class Watcher:
    """Looks at a server from outside."""

    def __init__(self, pid: int, metrics_port: int) -> None:
        self._process = psutil.Process(pid)
        self._url = f"http://127.0.0.1:{metrics_port}/metrics"
        self._started_s = time.monotonic()

    def sample(self) -> Sample:
        rss = threads = fds = 0
        for process in (self._process, *self.workers()):
            try:
                with process.oneshot():
                    rss += process.memory_info().rss
                    threads += process.num_threads()
                    fds += process.num_fds()
            except psutil.NoSuchProcess:  # a worker that was killed a moment ago
                continue
        return Sample(time.monotonic() - self._started_s, rss / 2**20, threads, fds, self.metrics())

    def metrics(self) -> dict[str, float]:
        """Gauges and counters, summed over their labels."""
        with urllib.request.urlopen(self._url, timeout=10) as reply:
            text = reply.read().decode()
        found = dict.fromkeys((*GAUGES, *COUNTERS, names.READY), 0.0)
        for name, value in re.findall(r"^(\w+)(?:\{[^}]*\})? (\S+)$", text, flags=re.MULTILINE):
            if name in found:
                found[name] += float(value)
        return found

    def workers(self) -> list[psutil.Process]:
        try:
            return [child for child in self._process.children(recursive=True) if child.is_running()]
        except psutil.NoSuchProcess:
            return []

    def kill_a_worker(self, number: int) -> None:
        """Without a warning, as the system does when memory is short."""
        pids = sorted(child.pid for child in self.workers() if child.status() != psutil.STATUS_ZOMBIE)
        if pids:
            os.kill(pids[number % len(pids)], signal.SIGKILL)


def slope_mib_per_h(samples: Sequence[Sample]) -> float:
    """How fast the floor of memory rises."""
    size = max(1, len(samples) // STRETCHES)
    floors = [min(samples[at : at + size], key=lambda s: s.rss_mib) for at in range(0, len(samples) - size + 1, size)]
    slopes = [(b.rss_mib - a.rss_mib) / (b.at_s - a.at_s) for a, b in combinations(floors, 2) if b.at_s > a.at_s]
    return 3600 * statistics.median(slopes) if slopes else 0.0


def scenario_of(args: argparse.Namespace) -> Scenario:
    shipped = load_scenario("soak-mix")
    phase = dataclasses.replace(shipped.phases[0], seconds=60 * args.minutes, rate_per_s=args.rate)
    leak = 0.3 if args.leak else 0.0
    kinds = tuple(dataclasses.replace(kind, leak_chance=leak) for kind in shipped.kinds)
    warmup_s = min(shipped.warmup_s, phase.seconds / 4)
    return dataclasses.replace(shipped, phases=(phase,), kinds=kinds, warmup_s=warmup_s, seed=args.seed)


def soak(args: argparse.Namespace, checkpoint: Checkpoint) -> tuple[LoadResult, list[Sample], Sample, Sample]:
    """Result of the load, samples under it, and the server before and after."""
    port = _free_port()
    ttl_s = 86400.0 if args.leak else SESSION_TTL_S
    flags = {
        "--precision": "int8",
        "--threads": "1",
        "--metrics-port": port,
        "--session-ttl": ttl_s,
        "--kv-budget": f"{args.kv_mib}MiB",
        "--max-sessions-per-tenant": 256,
        "--executor": args.executor,
    }
    arguments = tuple(str(word) for flag in flags.items() for word in flag)
    with CloudProcess(str(checkpoint.directory), arguments=arguments) as cloud, ThreadPoolExecutor(1) as pool:
        watcher = Watcher(cloud.pid, port)
        shape = checkpoint.config.shape
        trust = CloudAddress(address=cloud.address, key=cloud.key).trust()
        target = Target(address=cloud.address, fingerprint=checkpoint.fingerprint, trust=trust)
        model = Model(
            layers=shape.layers, hidden=shape.hidden, vocab=shape.vocab, fingerprint=checkpoint.fingerprint.hex()
        )
        before = watcher.sample()
        load = pool.submit(run_scenario, scenario_of(args), target, model)
        samples = _watch(watcher, load, args)
        result = load.result()
        deadline_s = time.monotonic() + DRAIN_S
        while (after := watcher.sample()) and _left(after) and time.monotonic() < deadline_s:
            time.sleep(0.5)  # a poll of another process
        return result, samples, before, after


def _watch(watcher: Watcher, load: Future[LoadResult], args: argparse.Namespace) -> list[Sample]:
    """Samples until the load has ended; kills a worker now and then where there are any."""
    samples: list[Sample] = []
    next_kill_s = time.monotonic() + args.kill_every_s
    kills = 0
    while not load.done():
        samples.append(watcher.sample())
        # One that is only just starting is left alone: this is about losing workers under load, not about never
        # having one.
        due = args.executor == "process" and time.monotonic() >= next_kill_s
        if due and samples[-1].gauges[names.READY]:
            watcher.kill_a_worker(kills)
            kills += 1
            next_kill_s = time.monotonic() + args.kill_every_s
        time.sleep(args.every_s)
    return samples


def _left(sample: Sample) -> dict[str, float]:
    return {name: sample.gauges[name] for name in GAUGES if sample.gauges[name]}


def checks(
    result: LoadResult, samples: Sequence[Sample], before: Sample, after: Sample, bound_mib_per_h: float
) -> list[tuple[str, str, bool]]:
    """Every promise with what was found and whether it holds."""
    left = _left(after)
    slope = slope_mib_per_h(samples[len(samples) // 2 :])
    silent = result.record.outcomes(Outcome.FAILED)["no answer"]
    served = sum(line.outcome is Outcome.OK for line in result.record.sessions)
    held = ", ".join(f"{name.removeprefix(names.PREFIX)} {value:g}" for name, value in left.items())
    return [
        ("every resource gauge is zero after the end", held or "all zero", not left),
        (
            f"memory over the last half grows less than {bound_mib_per_h:g} MiB/h",
            f"{slope:+.1f} MiB/h",
            slope < bound_mib_per_h,
        ),
        (
            f"threads back to those of the idle server, {MORE_THREADS} more at most",
            f"{before.threads} before, {after.threads} after",
            after.threads <= before.threads + MORE_THREADS,
        ),
        (
            f"file descriptors back to those of the idle server, {MORE_FDS} more at most",
            f"{before.fds} before, {after.fds} after",
            after.fds <= before.fds + MORE_FDS,
        ),
        ("no session waited until its patience ended", f"{silent} did", not silent),
        ("sessions were served", f"{served} to their end", served > 0),
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=4.0, help="sessions per second")
    parser.add_argument("--kv-mib", type=int, default=2, help="KV budget: small enough for evictions")
    parser.add_argument("--executor", choices=("inline", "process"), default="inline")
    parser.add_argument("--kill-every-s", type=float, default=60.0, help="with worker processes")
    parser.add_argument("--every-s", type=float, default=3.0, help="between samples")
    parser.add_argument("--max-slope", type=float, default=10.0, metavar="MIB_PER_H", help="bound on memory growth")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--leak", action="store_true", help="negative control: must fail")
    parser.add_argument("--smoke", action="store_true", help="ten seconds, memory bound off, no result file")
    args = parser.parse_args()
    if args.smoke:
        args.minutes, args.every_s, args.max_slope, args.kill_every_s = 1 / 6, 1.0, float("inf"), 6.0
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = ensure_checkpoint(Path(scratch) / "tiny", SHAPES["tiny"])
        result, samples, before, after = soak(args, checkpoint)
    found = checks(result, samples, before, after, args.max_slope)
    passed = all(holds for _, _, holds in found)
    counted = {name.removeprefix(names.PREFIX): after.gauges[name] for name in COUNTERS}
    shown = samples[:: max(1, len(samples) // 12)]
    name = f"soak-{args.executor}" + ("-leak" if args.leak else "")
    sections = [
        f"{args.minutes:g} minutes, {args.rate:g} sessions/s, {args.executor} executor, KV budget {args.kv_mib} MiB"
        + (", negative control: sessions are leaked on purpose" if args.leak else ""),
        f"## {'PASS' if passed else 'FAIL'}",
        markdown_table(["promise", "found", "holds"], [(p, f, "yes" if h else "NO") for p, f, h in found]),
        "On the way: " + ", ".join(f"{value:g} {counter}" for counter, value in counted.items()) + ".",
        f"## Load ({verdict(result)})",
        markdown_table(HEADER, table(result)),
        "## Server",
        markdown_table(
            ["s", "RSS MiB", "threads", "fds", "sessions", "streams", "KV MiB"],
            [
                [
                    f"{sample.at_s:.0f}",
                    f"{sample.rss_mib:.1f}",
                    sample.threads,
                    sample.fds,
                    f"{sample.gauges[names.SESSIONS_OPEN]:g}",
                    f"{sample.gauges[names.STREAMS_OPEN]:g}",
                    f"{sample.gauges[names.KV_BYTES] / 2**20:.2f}",
                ]
                for sample in [before, *shown, after]
            ],
        ),
    ]
    packages = ("splitglm", "numpy", "onnxruntime", "grpcio", "cryptography")
    write_report(name, "Soak", sections, packages=packages, write=not args.smoke)
    if not args.smoke:
        print(f"written to {RESULTS.name}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
