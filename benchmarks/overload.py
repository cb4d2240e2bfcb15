"""Goal R7: a cloud that is asked for more than it can do: goodput, refusals, and how soon it is itself again.

The shipped scenarios `overload-2x`, `-5x` and `-10x`: a closed loop of 32 sessions finds the capacity; then sessions
arrive open loop at 0.7 times that rate, at the overload, and at once at half the rate. The cloud is a process on core
0, the generator one on core 1. A run is void, and shown as that, when the generator was late or too busy.

* goodput: answers per second of sessions that ended as planned, over the highest of any phase of the run.
* admitted p99: time to first token and step of the sessions that were let in, over the same at 0.7 times the capacity.
* refusal p99: from when the session was meant to start to its refusal.
* recovery: from the end of the overload to the last arrival that was refused, failed, or waited more than twice the p99
  at 0.7 times the capacity.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
from pathlib import Path

from pinning import pinned_children
from random_model import SHAPES, ensure_checkpoint
from report import markdown_table, spread, write_report

from splitglm_cli.cloud_process import CloudProcess
from splitglm_edge.connection import CloudAddress
from splitglm_glm.opening import open_checkpoint
from splitglm_glm.store import ModelStore
from splitglm_sims.load.generator import Model
from splitglm_sims.load.record import Stage
from splitglm_sims.load.result import HEADER, LoadResult, table, verdict
from splitglm_sims.load.run import Options, run_scenario
from splitglm_sims.load.scenario import Scenario, load_scenario
from splitglm_sims.load.stream import Target


def scenario_of(factor: int, seed: int, args: argparse.Namespace) -> Scenario:
    """The shipped scenario, its phases as long as asked for."""
    shipped = load_scenario(f"overload-{factor}x")
    phases = tuple(dataclasses.replace(phase, seconds=args.seconds) for phase in shipped.phases)
    return dataclasses.replace(shipped, phases=phases, seed=seed, warmup_s=min(shipped.warmup_s, args.seconds / 4))


def run(args: argparse.Namespace, model: str, factor: int, seed: int) -> LoadResult:
    """One whole run against a fresh cloud: what one run leaves behind shall not be in the next."""
    checkpoint = open_checkpoint(model, ModelStore())
    shape = checkpoint.config.shape
    facts = Model(layers=shape.layers, hidden=shape.hidden, vocab=shape.vocab, fingerprint=checkpoint.fingerprint.hex())
    # Every simulated device has the same address, so the whole load is one tenant.
    arguments = ("--precision", "int8", "--threads", "1", "--max-sessions-per-tenant", "256", *args.cloud)
    with contextlib.ExitStack() as running:
        with pinned_children(() if args.no_pin else (0,)):
            cloud = running.enter_context(CloudProcess(model, arguments=arguments))
        trust = CloudAddress(address=cloud.address, key=cloud.key).trust()
        target = Target(address=cloud.address, fingerprint=checkpoint.fingerprint, trust=trust)
        options = Options(cores=() if args.no_pin else (1,))
        return run_scenario(scenario_of(factor, seed, args), target, facts, options)


def verdicts(results: list[LoadResult], factor: int) -> list[str]:
    """One row: the figures of R7 as median and range over the runs."""
    goodput, ttft, step, refusal, recovery, capacity = ([] for _ in range(6))
    for result in results:
        normal, over, after = (result.phase(name) for name in ("0.7x", f"{factor}x", "0.5x"))
        peak = max(phase.whole.answers_per_s or 0.0 for phase in result.phases)
        goodput.append((over.whole.answers_per_s or 0.0) / peak)
        for values, stage in ((ttft, Stage.TTFT), (step, Stage.STEP)):
            if over.whole.time(stage).count and normal.whole.time(stage).count:
                values.append(over.whole.time(stage).p99_s / normal.whole.time(stage).p99_s)
        if over.whole.time(Stage.REFUSAL).count:
            refusal.append(1e3 * over.whole.time(Stage.REFUSAL).p99_s)
        recovery.append(after.recovery_s or 0.0)
        capacity.append(result.capacity_per_s or 0.0)
    return [
        f"{factor}x",
        spread(capacity),
        spread(goodput, 2),
        spread(ttft, 2),
        spread(step, 2),
        spread(refusal, 0),
        spread(recovery, 1),
        f"{sum(bool(result.health.void) for result in results)} of {len(results)}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help=f"of the store, or {', '.join(SHAPES)}")
    parser.add_argument("--factors", type=int, nargs="+", default=[2], choices=(2, 5, 10))
    parser.add_argument("--seconds", type=float, default=30.0, help="of each phase; 120 and more for a release")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--no-pin", action="store_true", help="leave the cores to the system")
    parser.add_argument("--cloud", nargs="*", default=[], metavar="FLAG", help="further flags of `cloud serve`")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, three seconds a phase, no result file")
    args = parser.parse_args()
    if args.smoke:
        args.model, args.seconds, args.repetitions, args.factors = "tiny", 3.0, 1, [2]
    summary, details = [], []
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model
        if model in SHAPES:
            model = str(ensure_checkpoint(Path(scratch) / model, SHAPES[model]).directory)
        for factor in args.factors:
            results = [run(args, model, factor, seed) for seed in range(1, args.repetitions + 1)]
            summary.append(verdicts(results, factor))
            for number, result in enumerate(results, start=1):
                details += [
                    f"### {factor}x, run {number}: {verdict(result)}",
                    markdown_table(HEADER, table(result)),
                ]
    header = [
        *("overload", "capacity, sessions/s", "goodput of peak", "TTFT p99 / 0.7x", "step p99 / 0.7x"),
        *("refusal p99 ms", "recovery s", "void"),
    ]
    sections = [
        f"Model {args.model}, int8, one compute thread; split sessions at random cuts; phases of {args.seconds:g} s; "
        f"{'cores left to the system' if args.no_pin else 'cloud on core 0, generator on core 1'}. "
        "Median (range) over the runs.",
        markdown_table(header, summary),
        "## Every run",
        *details,
    ]
    packages = ("splitglm", "numpy", "onnxruntime", "grpcio", "cryptography")
    write_report("overload", "R7: overload", sections, packages=packages, write=not args.smoke)


if __name__ == "__main__":
    main()
