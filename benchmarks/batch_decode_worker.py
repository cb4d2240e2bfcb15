"""Decode of several sessions at once by the cloud's ONNX runner, in a process of its own. Prints one JSON line.

Steps as in llama_batch_worker.py: every session gets a prompt of its own, then each step embeds one token of every
session of the batch, runs all layers and computes the logits of all.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from splitglm_cloud.engine.runner import Rider
from splitglm_cloud.engine.runner_onnx import OnnxRunner
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.huge_pages import huge_page_bytes
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.stack import LayerStack


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("graphs", type=Path)
    parser.add_argument("precision", type=Precision)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--rounding", action="store_true", help="a batch of one row is computed as one (exact=False)")
    arguments = parser.parse_args()
    sessions, warm = max(arguments.batches), 3

    checkpoint = Checkpoint.open(arguments.checkpoint)
    options = RuntimeOptions(threads=arguments.threads)
    stack = LayerStack(checkpoint, arguments.graphs, arguments.precision, options=options)
    every = LayerRange(0, checkpoint.config.shape.layers)
    runner = OnnxRunner(stack, every, embedding=True, head=True, exact=not arguments.rounding)
    caches = [runner.new_cache(every, arguments.context + arguments.steps + warm) for _ in range(sessions)]

    def decode(ids: np.ndarray, rows: int, chosen: range) -> float:
        """``rows`` ids of each chosen session, one after the other; seconds."""
        start = time.perf_counter()
        riders = [Rider(caches[s], rows, caches[s].length) for s in chosen]
        out = runner.forward(runner.embed(ids), riders, every)
        if rows == 1:
            runner.logits(out)
        return time.perf_counter() - start

    for session in range(sessions):
        prompt = (7 * np.arange(arguments.context) + 3 * session) % 500
        decode(prompt, arguments.context, range(session, session + 1))
    step_s = {}
    for size in arguments.batches:
        times = [decode((step + np.arange(size)) % 500, 1, range(size)) for step in range(arguments.steps + warm)]
        step_s[str(size)] = times[warm:]
        for cache in caches[:size]:
            cache.truncate(arguments.context)
    print(json.dumps({"step_s": step_s, "huge_page_bytes": huge_page_bytes()}))


if __name__ == "__main__":
    main()
