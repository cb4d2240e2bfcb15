"""From a model's name to something that computes: find it, build the graphs that are missing, open the stack."""

from __future__ import annotations

from collections.abc import Callable

from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export.manifest import EMBEDDING, HEAD, layer_part
from splitglm_glm.runtime import RuntimeOptions
from splitglm_glm.stack import LayerStack
from splitglm_glm.store import ModelStore

Progress = Callable[[str, int, int], None]


def open_checkpoint(model: str, store: ModelStore | None = None) -> Checkpoint:
    """The checkpoint of a stored model or of a directory.

    Raises:
        ModelNotFound, ModelInvalid: there is none, or it is damaged.
    """
    return Checkpoint.open((store or ModelStore()).find(model))


def open_stack(
    checkpoint: Checkpoint,
    precision: Precision,
    *,
    layers: LayerRange,
    embedding: bool,
    head: bool,
    store: ModelStore | None = None,
    options: RuntimeOptions | None = None,
    progress: Progress | None = None,
) -> LayerStack:
    """A stack whose graphs exist for ``layers`` and, if asked for, embedding and head. Nothing is loaded yet.

    Args:
        progress: called with (part, parts done, parts in all) while graphs are checked or built.

    Raises:
        StorageFull, ModelInvalid: the graphs cannot be built.
    """
    from splitglm_glm.export.build import ensure_graphs  # brings onnx, which importing the device's half must not

    graphs = (store or ModelStore()).graphs_dir(checkpoint.directory, precision)
    parts = [*([EMBEDDING] if embedding else []), *map(layer_part, layers), *([HEAD] if head else [])]
    ensure_graphs(checkpoint, precision, graphs, parts, progress)
    return LayerStack(checkpoint, graphs, precision, options=options)
