"""One measurement of the layer stack in a process of its own. Prints one JSON line.

Steps as in llama_worker.py: prefill (head on the last position), then single tokens at the asked-for context lengths;
embedding, every layer and the head are inside every measurement. ``--one-graph`` runs the layers as a single ONNX graph
instead of one session per layer, to price the chaining.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export.manifest import layer_part
from splitglm_glm.huge_pages import huge_page_bytes
from splitglm_glm.kv import KvCache
from splitglm_glm.rotary import RotaryTable
from splitglm_glm.runtime import RuntimeOptions, session_options
from splitglm_glm.stack import LayerStack

SHARED = ("last_position", "total_length", "cos", "sin")


def merge_layers(graphs: Path, layers: int) -> Path:
    """All layer graphs as one, over the same data files."""
    path = graphs / "all-layers.onnx"
    whole = onnx.ModelProto()
    for i in range(layers):
        model = onnx.load(graphs / f"{layer_part(i)}.onnx", load_external_data=False)
        names = {name: name for name in SHARED}
        names["hidden_in"] = "hidden_in" if i == 0 else f"{i - 1}.out"
        names["hidden_out"] = "hidden_out" if i == layers - 1 else f"{i}.out"

        def local(name: str, names: dict[str, str] = names, i: int = i) -> str:
            return names.get(name, f"{i}.{name}") if name else ""

        for node in model.graph.node:
            node.name = f"{i}.{node.name}"
            node.input[:] = [local(name) for name in node.input]
            node.output[:] = [local(name) for name in node.output]
        for value in (*model.graph.initializer, *model.graph.input, *model.graph.output):
            value.name = local(value.name)
        if i == 0:
            whole.CopyFrom(model)
            del whole.graph.input[:], whole.graph.output[:]
        else:
            whole.graph.node.extend(model.graph.node)
            whole.graph.initializer.extend(model.graph.initializer)
        known = {value.name for value in whole.graph.input}
        whole.graph.input.extend(v for v in model.graph.input if v.name not in known and not v.name.endswith(".out"))
        whole.graph.output.extend(v for v in model.graph.output if not v.name.endswith(".out"))
    onnx.save(whole, path)
    return path


class OneGraph:
    """The layers as one session with static bindings, otherwise like ``LayerStack.forward``."""

    def __init__(self, checkpoint: Checkpoint, graphs: Path, options: RuntimeOptions, capacity: int) -> None:
        shape = self.shape = checkpoint.config.shape
        path = merge_layers(graphs, shape.layers)
        self.session = ort.InferenceSession(str(path), session_options(options), providers=["CPUExecutionProvider"])
        value = ort.OrtValue.ortvalue_from_numpy
        dims = (1, shape.kv_heads, capacity, shape.head_dim)
        self.kv = {f"{i}.{kind}": np.zeros(dims, np.float32) for i in range(shape.layers) for kind in ("key", "value")}
        self.last, self.total = np.zeros(1, np.int32), np.zeros((), np.int32)
        rotary = RotaryTable.build(capacity, checkpoint.config)
        self.fixed = {
            "last_position": value(self.last),
            "total_length": value(self.total),
            "cos": rotary.cos,
            "sin": rotary.sin,
        }
        self.kv_values = {name: value(array) for name, array in self.kv.items()}
        self.length = 0
        self.bindings: dict[int, tuple[np.ndarray, np.ndarray, ort.IOBinding]] = {}

    def forward(self, hidden: np.ndarray) -> np.ndarray:
        n = len(hidden)
        if n not in self.bindings:
            x, y = (np.zeros((1, n, self.shape.hidden), np.float32) for _ in range(2))
            bound = self.session.io_binding()
            bound.bind_ortvalue_input("hidden_in", ort.OrtValue.ortvalue_from_numpy(x))
            bound.bind_ortvalue_output("hidden_out", ort.OrtValue.ortvalue_from_numpy(y))
            for name, fixed in self.fixed.items():
                bound.bind_ortvalue_input(name, fixed)
            for name, array in self.kv_values.items():
                layer, _, kind = name.partition(".")
                bound.bind_ortvalue_input(f"{layer}.past_{kind}", array)
                bound.bind_ortvalue_output(f"{layer}.present_{kind}", array)
            self.bindings[n] = x, y, bound
        x, y, bound = self.bindings[n]
        x[0] = hidden
        self.last[0], self.total[...] = self.length + n - 1, self.length + n
        self.session.run_with_iobinding(bound)
        self.length += n
        return y[0].copy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("graphs", type=Path)
    parser.add_argument("precision", type=Precision)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prefill", type=int, required=True)
    parser.add_argument("--contexts", type=int, nargs="+", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--pool", choices=("spinning", "sleeping"), required=True)
    parser.add_argument("--one-graph", action="store_true")
    arguments = parser.parse_args()

    checkpoint = Checkpoint.open(arguments.checkpoint)
    options = RuntimeOptions(threads=arguments.threads, spinning=arguments.pool == "spinning")
    stack = LayerStack(checkpoint, arguments.graphs, arguments.precision, options=options)
    every = LayerRange(0, checkpoint.config.shape.layers)
    capacity = max(arguments.prefill, *arguments.contexts) + arguments.steps + 8
    stack.preload(LayerRange(0, 0) if arguments.one_graph else every, embedding=True, head=True)
    whole = OneGraph(checkpoint, arguments.graphs, options, capacity) if arguments.one_graph else None
    cache: KvCache = stack.new_cache(every, capacity)

    def run(ids: np.ndarray) -> float:
        start = time.perf_counter()
        hidden = stack.embed(ids)
        hidden = stack.forward(hidden, cache, every) if whole is None else whole.forward(hidden)
        stack.logits(hidden[-1:])
        return time.perf_counter() - start

    def forget() -> None:
        cache.truncate(0)
        if whole is not None:
            whole.length = 0

    prompt = (7 * np.arange(max(arguments.prefill, *arguments.contexts))) % 500
    prefill_s = []
    for _ in range(3):
        forget()
        prefill_s.append(run(prompt[: arguments.prefill]))
    decode_s = {}
    for length in arguments.contexts:
        forget()
        run(prompt[:length])
        steps = [run(np.array([i % 500])) for i in range(arguments.steps + 3)]
        decode_s[str(length)] = steps[3:]
    result = {"prefill_s": prefill_s[1:], "decode_s": decode_s, "huge_page_bytes": huge_page_bytes()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
