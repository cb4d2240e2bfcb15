"""Decode of several sessions at once beside llama.cpp (goal S9): milliseconds per token at batch 1, 8, 16, 32.

    python benchmarks/batch_decode.py --llama-python PATH --work DIR [--rounds 5] [--smoke]

The demo model and the shape of GLM-Edge-1.5B with random weights; int8 beside Q8_0 and int4 beside Q4_0, the same
weights on both sides. A step embeds one token of every session, runs all layers and computes the logits of every
session, on both sides; contexts, threads and huge pages are equal. Every measurement is a process of its own and the
rows take turns, so that a ratio compares neighbours in time. PATH is an interpreter that has the llama-cpp-python
package (default: this one); without the package, the ratio columns say so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from front import GRAPHS, HERE, Row, llama_version, measure
from gguf_model import ensure_gguf
from random_model import SHAPES, ensure_checkpoint
from report import load_average, markdown_table, spread, write_report

from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export.build import ensure_graphs
from splitglm_glm.huge_pages import huge_pages_status
from splitglm_glm.opening import open_checkpoint
from splitglm_glm.runtime import usable_cores

DEMO = "smollm2-135m"


def rows_of(checkpoint: Checkpoint, name: str, work: Path, llama_python: str | None) -> list[Row]:
    rows = []
    for precision, kind in GRAPHS.items():
        graphs = ensure_graphs(checkpoint, precision, work / f"{name}-{precision.value}")
        reference = f"{name}, llama.cpp {kind.upper()}"
        if llama_python is not None:
            gguf_file = ensure_gguf(checkpoint, work / f"{name}-{kind}.gguf", kind)
            rows.append(Row(reference, (llama_python, str(HERE / "llama_batch_worker.py"), str(gguf_file)), ""))
        worker = str(HERE / "batch_decode_worker.py")
        ours = (sys.executable, worker, str(checkpoint.directory), str(graphs), precision.value)
        rows.append(Row(f"{name}, splitglm {precision.value}", ours, reference))
        rows.append(Row(f"{name}, splitglm {precision.value}, rounding", (*ours, "--rounding"), reference))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="directory for weights (8 GB), reused when present")
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="steps per measurement")
    parser.add_argument("--context", type=int, default=128, help="positions that every session holds already")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--models", nargs="+", choices=(DEMO, "glm-edge-1.5b", "tiny"), default=[DEMO, "glm-edge-1.5b"])
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one round, no result file")
    arguments = parser.parse_args()
    if arguments.work is None and not arguments.smoke:
        parser.error("--work DIR is needed for the weights")
    with tempfile.TemporaryDirectory() as nowhere:
        run(arguments, arguments.work or Path(nowhere))


def run(arguments: argparse.Namespace, work: Path) -> None:
    if arguments.smoke:
        arguments.rounds, arguments.steps, arguments.context = 1, 3, 8
        arguments.batches, arguments.models = [1, 4], ["tiny"]

    version = llama_version(arguments.llama_python)
    llama_python = arguments.llama_python if version else None
    rows: list[Row] = []
    for name in arguments.models:
        known = SHAPES.get(name)
        checkpoint = open_checkpoint(name) if known is None else ensure_checkpoint(work / name, known)
        rows += rows_of(checkpoint, name, work, llama_python)
    common = ["--threads", str(arguments.threads), "--context", str(arguments.context), "--steps", str(arguments.steps)]
    seconds: dict[tuple[str, int], list[float]] = {}
    loads = []
    for _ in range(arguments.rounds):
        for row in rows:
            # A batch of one is all that `rounding` changes.
            batches = arguments.batches[:1] if row.label.endswith("rounding") else arguments.batches
            loads.append(load_average())
            steps = measure(row, [*common, "--batches", *map(str, batches)])["step_s"]
            assert isinstance(steps, dict)
            for size in batches:
                seconds.setdefault((row.label, size), []).append(statistics.median(steps[str(size)]) / size)

    def ratio(row: Row, size: int) -> str:
        mine, theirs = seconds.get((row.label, size)), seconds.get((row.against, size))
        if mine is None or row.against == "":
            return "-"
        return "no llama_cpp" if theirs is None else spread([a / b for a, b in zip(theirs, mine, strict=True)], 2)

    table, header = [], ["engine"]
    for size in arguments.batches:
        header += [f"batch {size}, ms/token", "speed ratio"]
    for row in rows:
        cells: list[str] = [row.label]
        for size in arguments.batches:
            cells += [spread([1e3 * s for s in seconds.get((row.label, size), [])]), ratio(row, size)]
        table.append(cells)
    status = huge_pages_status()
    settings = (
        f"{arguments.threads} threads, {arguments.context} positions of context in every session, {arguments.rounds} "
        f"rounds, {arguments.steps} steps per measurement, median (range) over rounds; milliseconds of a step divided "
        f"by its sessions. Huge pages: {'asked for on both sides' if status.possible else status.reason}. "
        f"llama-cpp-python: {version or 'not installed'}, one llama_decode per step with a stream of KV cells per "
        "sequence, memory mapping off, its default KV type (fp16) and flash attention; ours fp32. Vocabulary matrix: 8 "
        "bits on both sides; embedding, all layers and the head are in every figure. A ratio above 1 means that this "
        "row is faster than llama.cpp at the same bits. `rounding`: one row is computed as one and not as two, so that "
        "its bits may differ from the same row's in a batch. Load average before the measurements: "
        f"{', '.join(loads)}."
    )
    write_report(
        "batch_decode",
        "Decode of several sessions at once beside llama.cpp",
        [settings, markdown_table(header, table), "Goal S9: at batch 1 and 8 a ratio >= 1.0."],
        packages=("onnxruntime", "onnx", "numpy", "gguf"),
        write=not arguments.smoke,
    )


if __name__ == "__main__":
    main()
