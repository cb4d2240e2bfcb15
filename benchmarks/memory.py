"""Memory, import time and wheel size (goals Z1 to Z4).

    python benchmarks/memory.py --work DIR [--smoke]

Every figure comes from a process of its own. Resident memory is read from /proc/self/status (VmRSS, RssAnon, RssFile;
peak VmHWM), not from getrusage, whose maximum a child inherits from its parent.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from random_model import SHAPES, ensure_checkpoint
from report import markdown_table, spread, write_report

from splitglm_core.plan import Precision
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export.build import ensure_graphs
from splitglm_glm.huge_pages import huge_page_environment, huge_pages_status

MB = 1e6
MEASURE_BUILD = """
import json, sys
from pathlib import Path
from splitglm_core.plan import Precision
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export.build import ensure_graphs
ensure_graphs(Checkpoint.open(Path(sys.argv[1])), Precision(sys.argv[3]), Path(sys.argv[2]))
"""
MEASURE_DEVICE = """
import json, sys
from pathlib import Path
import numpy as np
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.stack import LayerStack
checkpoint = Checkpoint.open(Path(sys.argv[1]))
layers, tokens, head = LayerRange(0, int(sys.argv[4])), int(sys.argv[5]), sys.argv[6] == "head"
stack = LayerStack(checkpoint, Path(sys.argv[2]), Precision(sys.argv[3]), options=RuntimeOptions(threads=2))
stack.preload(layers, embedding=True, head=head)
cache = stack.new_cache(layers, checkpoint.config.shape.max_positions)
ids = np.random.default_rng(0).integers(0, checkpoint.config.shape.vocab, tokens)
for start in range(0, tokens - 8, 128):
    stack.forward(stack.embed(ids[start : min(start + 128, tokens - 8)]), cache, layers)
for i in range(tokens - 8, tokens):
    hidden = stack.forward(stack.embed(ids[i : i + 1]), cache, layers)
    if head:
        stack.logits(hidden)
weights = stack.resident_weight_bytes()
kv = checkpoint.config.shape.kv_bytes_per_token(len(layers)) * cache.length
"""
IMPORT_TIME = """
import json, sys, time
start = time.perf_counter()
import splitglm_edge
from splitglm_edge import Agent
seconds = time.perf_counter() - start
loaded = [name for name in ("torch", "transformers", "ray", "onnx") if name in sys.modules]
print(json.dumps({"seconds": seconds, "loaded": loaded}))
"""
STATUS = """
lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
memory = {key: int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM", "RssAnon", "RssFile")}
"""


def run(program: str, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, object]:
    """Run ``program`` in a fresh interpreter; its last line of output is JSON."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"a measurement failed: {done.stderr.strip()[-600:]}")
    result: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def build_rows(checkpoint: Checkpoint, work: Path) -> list[list[object]]:
    """Z2: peak resident memory of a process that builds every graph."""
    shape = checkpoint.config.shape
    layer_bytes = 4 * shape.layer_parameters
    rows: list[list[object]] = []
    for precision in Precision:
        with tempfile.TemporaryDirectory(dir=work) as directory:
            program = MEASURE_BUILD + STATUS + "print(json.dumps(memory))"
            peak = run(program, str(checkpoint.directory), directory, precision.value)["VmHWM"]
        assert isinstance(peak, int)
        limit = 2 * layer_bytes + 300 * MB
        rows.append(
            [precision.value, f"{peak / MB:.0f}", f"{layer_bytes / MB:.0f}", f"{limit / MB:.0f}", peak <= limit]
        )
    return rows


def device_rows(checkpoint: Checkpoint, work: Path, tokens: int) -> list[list[object]]:
    """Z1: resident memory of a device process after a prefill in chunks of 128 and eight decoded tokens."""
    layers = checkpoint.config.shape.layers
    environment = huge_page_environment(os.environ) if huge_pages_status().possible else dict(os.environ)
    rows: list[list[object]] = []
    for precision in (Precision.INT8, Precision.INT4):
        graphs = ensure_graphs(checkpoint, precision, work / f"{checkpoint.directory.name}-{precision.value}")
        for count, head in ((layers, "head"), (max(1, layers // 2), "none")):
            program = MEASURE_DEVICE + STATUS + "print(json.dumps(memory | {'weights': weights, 'kv': kv}))"
            got = run(
                program, str(checkpoint.directory), str(graphs), precision.value, str(count), str(tokens), head,
                environment=environment,
            )  # fmt: skip
            size = {name: int(value) / MB for name, value in got.items() if isinstance(value, int)}
            over = size["VmRSS"] - size["weights"] - size["kv"]
            label = f"{precision.value}, {count} of {layers} layers" + (", head" if head == "head" else "")
            cells = (size["weights"], size["kv"], size["VmRSS"], size["RssAnon"], size["RssFile"], size["VmHWM"])
            rows.append([label, *(f"{cell:.0f}" for cell in cells), f"{over:.0f}"])
    return rows


def import_row(times: int) -> list[object]:
    """Z3: seconds to import the device's package, and what it must not pull in."""
    results = [run(IMPORT_TIME) for _ in range(times)]
    seconds = [float(result["seconds"]) for result in results if isinstance(result["seconds"], float)]
    loaded = results[0]["loaded"]
    assert isinstance(loaded, list)
    return [
        "import splitglm_edge, Agent",
        f"{spread(seconds, 2)} s",
        ", ".join(map(str, loaded)) or "none of them",
        "0.4 s",
    ]


def wheel_row(root: Path) -> list[object]:
    """Z4: size of the wheel; ``-`` where the build package is missing."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", directory, str(root)]
        if shutil.which("uv"):
            command = ["uv", "build", "--wheel", "--out-dir", directory, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(directory).glob("*.whl"))
        size = f"{wheels[0].stat().st_size / MB:.3f} MB" if done.returncode == 0 and wheels else "not built"
    return ["wheel", size, "", "1 MB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory for weights (11 GB), reused when present")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, no result file")
    arguments = parser.parse_args()
    shape = "tiny" if arguments.smoke else "glm-edge-1.5b"
    arguments.work.mkdir(parents=True, exist_ok=True)
    checkpoint = ensure_checkpoint(arguments.work / shape, SHAPES[shape])
    checkpoint.fingerprint  # noqa: B018 - hashed once here, not in every measured process

    device_header = [
        "device process",
        "weights MB",
        "KV MB",
        "resident MB",
        "anonymous",
        "file pages",
        "peak",
        "over weights + KV",
    ]
    sections = [
        f"Shape {shape}, random weights. Device: {arguments.tokens} tokens in a cache of "
        f"{checkpoint.config.shape.max_positions} positions, embedding loaded in every row, sleeping pools of 2 "
        "threads, huge pages where the system allows. File pages are clean: the system can drop them at any time.",
        "## Z1: device process (goal: at most 80 MB over weights + KV)",
        markdown_table(device_header, device_rows(checkpoint, arguments.work, arguments.tokens)),
        "## Z2: building the graphs (goal: peak at most 2 layers + 300 MB)",
        markdown_table(
            ["precision", "peak MB", "one layer, fp32, MB", "goal MB", "met"], build_rows(checkpoint, arguments.work)
        ),
        "## Z3, Z4",
        markdown_table(
            ["what", "measured", "of torch, transformers, ray, onnx loaded", "goal"],
            [import_row(1 if arguments.smoke else 5), wheel_row(Path(__file__).parent.parent)],
        ),
    ]
    packages = ("onnxruntime", "onnx", "numpy")
    write_report("memory", "Memory, import time, wheel", sections, packages=packages, write=not arguments.smoke)


if __name__ == "__main__":
    main()
