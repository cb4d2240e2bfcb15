"""Speed of the layer stack beside llama.cpp (goals S1, S2, S3) and the price of one session per layer.

    python benchmarks/front.py --llama-python PATH --work DIR [--rounds 5] [--smoke]

Shape of GLM-Edge-1.5B, random weights, the same in both. Both sides run the whole model with its head, which is 8-bit
on both; contexts, threads and huge pages are equal. Every measurement is a process of its own and the rows take turns,
so that a ratio compares neighbours in time; the ratio of a row is the median over rounds. PATH is an interpreter that
has the llama-cpp-python package (default: this one); without the package, the ratio columns say so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gguf_model import ensure_gguf
from random_model import SHAPES, ensure_checkpoint
from report import load_average, markdown_table, spread, write_report

from splitglm_core.plan import Precision
from splitglm_glm.export.build import ensure_graphs
from splitglm_glm.huge_pages import huge_page_environment, huge_pages_status
from splitglm_glm.runtime import usable_cores

HERE = Path(__file__).parent
GRAPHS = {Precision.INT4: "q4_0", Precision.INT8: "q8_0"}


@dataclass(frozen=True, slots=True)
class Row:
    """One thing measured: a label, the command without its common options, and the row it is compared with."""

    label: str
    command: tuple[str, ...]
    against: str


def llama_version(python: str) -> str | None:
    """Version of llama-cpp-python in that interpreter, or None."""
    done = subprocess.run(
        [python, "-c", "import llama_cpp; print(llama_cpp.__version__)"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def measure(row: Row, common: list[str]) -> dict[str, object]:
    environment = huge_page_environment(os.environ) if huge_pages_status().possible else dict(os.environ)
    done = subprocess.run([*row.command, *common], capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{row.label} failed: {done.stderr.strip()[-400:]}")
    result: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def rows_of(work: Path, shape: str, llama_python: str | None) -> list[Row]:
    checkpoint = ensure_checkpoint(work / shape, SHAPES[shape])
    rows = []
    for precision, kind in GRAPHS.items():
        graphs = ensure_graphs(checkpoint, precision, work / f"{shape}-{precision.value}")
        reference = f"llama.cpp {kind.upper()}"
        if llama_python is not None:
            gguf_file = ensure_gguf(checkpoint, work / f"{shape}-{kind}.gguf", kind)
            rows.append(Row(reference, (llama_python, str(HERE / "llama_worker.py"), str(gguf_file)), ""))
        ours = (sys.executable, str(HERE / "front_worker.py"), str(checkpoint.directory), str(graphs), precision.value)
        name = f"splitglm {precision.value}"
        rows.append(Row(f"{name}, spinning pool", (*ours, "--pool", "spinning"), reference))
        rows.append(Row(f"{name}, sleeping pools", (*ours, "--pool", "sleeping"), reference))
        one_graph = (*ours, "--pool", "spinning", "--one-graph")
        rows.append(Row(f"{name}, spinning pool, one graph", one_graph, f"{name}, spinning pool"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory for weights (7 GB), reused when present")
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="tokens decoded per measurement")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one round, no result file")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rounds, arguments.steps = 1, 4
    shape, prefill, contexts = ("tiny", 16, (4, 12)) if arguments.smoke else ("glm-edge-1.5b", 256, (16, 512))

    version = llama_version(arguments.llama_python)
    rows = rows_of(arguments.work, shape, arguments.llama_python if version else None)
    common = ["--threads", str(arguments.threads), "--prefill", str(prefill), "--steps", str(arguments.steps)]
    common += ["--contexts", *map(str, contexts)]
    seconds: dict[tuple[str, str], list[float]] = {}
    loads = []
    for _ in range(arguments.rounds):
        for row in rows:
            loads.append(load_average())
            result = measure(row, common)
            decode = result["decode_s"]
            assert isinstance(decode, dict)
            seconds.setdefault((row.label, "prefill"), []).append(statistics.median(result["prefill_s"]))  # type: ignore[call-overload]
            for context in contexts:
                seconds.setdefault((row.label, str(context)), []).append(statistics.median(decode[str(context)]))

    def ratio(row: Row, what: str) -> str:
        theirs = seconds.get((row.against, what))
        if theirs is None:
            return "-" if row.against == "" else "no llama_cpp"
        return spread([a / b for a, b in zip(theirs, seconds[row.label, what], strict=True)], 2)

    table = []
    for row in rows:
        cells: list[str] = [row.label]
        for context in contexts:
            cells += [spread([1e3 * s for s in seconds[row.label, str(context)]]), ratio(row, str(context))]
        cells += [spread([prefill / s for s in seconds[row.label, "prefill"]], 0), ratio(row, "prefill"), row.against]
        table.append(cells)
    header = ["engine"]
    for context in contexts:
        header += [f"decode at {context}, ms/token", "speed ratio"]
    header += [f"prefill {prefill}, tokens/s", "speed ratio", "ratio over"]
    status = huge_pages_status()
    settings = (
        f"Shape {shape} ({SHAPES[shape]}), random weights distinct per layer, {arguments.threads} threads, "
        f"{arguments.rounds} rounds, {arguments.steps} tokens per measurement, median (range) over rounds. Huge pages: "
        f"{'asked for on both sides' if status.possible else status.reason}. llama-cpp-python: "
        f"{version or 'not installed'}, memory mapping off, its default KV type (fp16) and flash-attention; ours "
        "fp32. Vocabulary matrix: 8 bits on both sides, head included in every figure. Bits per weight of the layers: "
        "int4 4.28 and Q4_0 4.5, int8 8.25 and Q8_0 8.5. A ratio above 1 means that this row is faster. "
        f"Load average before the measurements: {', '.join(loads)}."
    )
    goals = (
        "Goals: S1 int4 decode over Q4_0 >= 1.2; S2 int8 decode over Q8_0 >= 1.3; S3 prefill over Q4_0 >= 2.5. "
        "The rows `one graph` are compared with the chain of sessions: above 1 means that chaining costs."
    )
    packages = ("onnxruntime", "onnx", "numpy", "gguf")
    write_report(
        "front",
        "Front: decode and prefill beside llama.cpp",
        [settings, markdown_table(header, table), goals],
        packages=packages,
        write=not arguments.smoke,
    )


if __name__ == "__main__":
    main()
