"""Goal R10: what sessions are told in batches of many, against what each of them is told alone.

Random schedules of sessions of every arm and cut in one engine (tests/cloud/isolation_world.py, whose test of the
test shows that it sees a leak): one session's hidden states are a thousand times everybody else's, one sends rows that
are not finite, pages are short, sessions are cut back, dropped, evicted and rebuilt. Tiny random model, fp32 for both
runners, so that a difference is a fault and not rounding.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from report import markdown_table, write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cloud"))
from engine_bench import LAYERS, Kind
from glm_factory import write_tiny_checkpoint
from isolation_world import IsolationWorld, Verdict

from splitglm_cloud.execution.building import build
from splitglm_cloud.execution.facts import EngineSpec
from splitglm_core.plan import Precision


def judged(name: str, model: Path, store: Path, schedules: int) -> list[str]:
    spec = EngineSpec(
        model=str(model), store=str(store), runner=name, precision=Precision.FP32, threads=1, kv_budget_bytes=1 << 26
    )
    runner, reference = build(spec).runner, build(spec).runner
    kind, verdict, started_s = Kind.of(runner, reference), Verdict(), time.perf_counter()
    for seed in range(schedules):
        world = IsolationWorld(kind, seed)
        world.run()
        world.compare(verdict)
    return [
        runner.name,
        f"{verdict.schedules:,}",
        f"{verdict.sessions:,}",
        f"{verdict.rows:,}",
        f"{verdict.max_error:.1e}",
        f"{verdict.tokens:,}",
        str(verdict.flips),
        f"{verdict.refused:,}",
        f"{verdict.rebuilt:,}",
        f"{time.perf_counter() - started_s:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--smoke", action="store_true", help="twenty schedules, no result file")
    args = parser.parse_args()
    schedules = 20 if args.smoke else args.schedules
    with tempfile.TemporaryDirectory() as scratch:
        model = write_tiny_checkpoint(Path(scratch) / "model", layers=LAYERS)
        rows = [judged(name, model, Path(scratch), schedules) for name in ("onnx", "torch")]
    head = ["runner", "schedules", "sessions", "rows compared", "largest error", "tokens compared", "that differ"]
    head += ["poisoned steps refused", "evictions rebuilt", "s"]
    sections = [
        "*Largest error*: of a hidden state, over the largest magnitude of its row; a schedule fails at once where a "
        "healthy session is refused anything, never finishes, or a page is not given back.",
        markdown_table(head, rows),
    ]
    packages = ("splitglm", "numpy", "onnxruntime", "torch")
    write_report("isolation", "R10: batched against alone", sections, packages=packages, write=not args.smoke)


if __name__ == "__main__":
    main()
