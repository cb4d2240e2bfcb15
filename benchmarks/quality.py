"""Quality of the quantised stacks: perplexity, next-token agreement and size against fp32 (goal Z5).

    python benchmarks/quality.py --model smollm2-135m [--smoke]

The text is documentation that ships with Python (module docstrings and the licence), tokenised in windows; each window
starts a fresh cache. fp32 means the checkpoint's own weights: a checkpoint that was itself converted from a quantised
file is compared with that file's values, not with the weights before.
"""

from __future__ import annotations

import argparse
import importlib
import math
from pathlib import Path

import numpy as np
from report import markdown_table, write_report

from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export.build import ensure_graphs
from splitglm_glm.export.manifest import GraphsManifest
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.stack import LayerStack
from splitglm_glm.store import ModelStore
from splitglm_glm.tokenizer import GlmTokenizer

MODULES = (
    "argparse",
    "typing",
    "pathlib",
    "decimal",
    "datetime",
    "difflib",
    "doctest",
    "heapq",
    "statistics",
    "pickle",
)
MODULES += ("optparse", "inspect", "random", "threading", "subprocess", "tarfile", "turtle", "unittest.mock", "zipfile")


def sample_text() -> str:
    """English technical prose that every Python installation has: the licence, then docstrings."""
    pieces = [str(__builtins__["license"]) if isinstance(__builtins__, dict) else str(license)]
    for name in MODULES:
        module = importlib.import_module(name)
        members = [module, *(getattr(module, attribute) for attribute in sorted(vars(module)))]
        for member in members:
            text = getattr(member, "__doc__", None)
            if isinstance(text, str) and len(text) > 400 and text not in pieces:
                pieces.append(text)
    return "\n\n".join(pieces)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def stored_bytes(graphs: Path) -> int:
    """Bytes of weight files, each counted once (a tied vocabulary is one file)."""
    manifest = GraphsManifest.read(graphs)
    if manifest is None:
        raise SystemExit(f"no graphs in {graphs.name}")
    files = {name: file.bytes for part in manifest.parts.values() for name, file in part.items()}
    return sum(size for name, size in files.items() if name.endswith(".bin"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="name in the store or a checkpoint directory")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of text to predict")
    parser.add_argument("--window", type=int, default=512, help="tokens per context")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, help="directory for the graphs; default: the model store")
    parser.add_argument("--smoke", action="store_true", help="a few tokens, no result file")
    arguments = parser.parse_args()

    store = ModelStore()
    directory = store.find(arguments.model)
    checkpoint = Checkpoint.open(directory)
    ids = np.array(GlmTokenizer.open(directory).encode(sample_text())[: arguments.tokens], np.int64)
    windows = [ids[i : i + arguments.window] for i in range(0, len(ids), arguments.window)]
    windows = [window for window in windows if len(window) > 1]
    every = LayerRange(0, checkpoint.config.shape.layers)
    options = RuntimeOptions(threads=arguments.threads)

    stacks: dict[Precision, LayerStack] = {}
    sizes: dict[Precision, int] = {}
    for precision in Precision:
        graphs = arguments.work / precision.value if arguments.work else store.graphs_dir(directory, precision)
        ensure_graphs(checkpoint, precision, graphs)
        stacks[precision] = LayerStack(checkpoint, graphs, precision, options=options)
        sizes[precision] = stored_bytes(graphs)

    loss = dict.fromkeys(Precision, 0.0)
    divergence = dict.fromkeys(Precision, 0.0)
    agreeing = dict.fromkeys(Precision, 0)
    predicted = 0
    for window in windows:
        exact: np.ndarray | None = None
        for precision, stack in stacks.items():
            cache = stack.new_cache(every, len(window))
            log_p = log_softmax(stack.logits(stack.forward(stack.embed(window[:-1]), cache, every)))
            cache.close()
            exact = log_p if exact is None else exact  # fp32 is the first precision
            loss[precision] -= float(log_p[np.arange(len(window) - 1), window[1:]].sum(dtype=np.float64))
            divergence[precision] += float((np.exp(exact) * (exact - log_p)).sum(dtype=np.float64))
            agreeing[precision] += int((log_p.argmax(-1) == exact.argmax(-1)).sum())
        predicted += len(window) - 1

    base = math.exp(loss[Precision.FP32] / predicted)
    rows = []
    for precision in Precision:
        perplexity = math.exp(loss[precision] / predicted)
        rows.append(
            (
                precision.value,
                f"{sizes[precision] / 1e6:.1f}",
                f"{sizes[precision] / sizes[Precision.FP32]:.3f}",
                f"{perplexity:.4f}",
                f"{100 * (perplexity / base - 1):+.2f} %",
                f"{divergence[precision] / predicted:.5f}",
                f"{100 * agreeing[precision] / predicted:.1f} %",
            )
        )
    header = ("precision", "weights MB", "of fp32", "perplexity", "rise", "KL nat/token", "same next token")
    sections = [
        f"Model {arguments.model}, {predicted} predicted tokens in windows of {arguments.window}, text: "
        "Python's licence and standard-library docstrings. "
        "Goal Z5: int8 at most 0.27 of fp32 and at most 0.5 % more perplexity.",
        markdown_table(header, rows),
    ]
    write_report(
        "quality", "Quality of the layer graphs", sections, packages=("onnxruntime", "numpy"), write=not arguments.smoke
    )


if __name__ == "__main__":
    main()
