"""Building the graphs of a checkpoint, one part at a time.

A part is staged under a temporary name, moved into place and only then listed in ``graphs.json``: whatever interrupts
the build, the next run keeps the parts that are listed with the right sizes and builds the others. Memory holds one
layer of float32 weights and a few tens of MB of temporaries.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from splitglm_core.errors import InternalError, StorageFull
from splitglm_core.plan import Precision
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.compress.calibrate import Calibration, ensure_calibration
from splitglm_glm.compress.equalise import channel_factors, column_peaks, equalise_layer
from splitglm_glm.compress.quantise import Float32, row_chunks
from splitglm_glm.export.graph import DataFile, Graph
from splitglm_glm.export.layers import WeightRecipe, add_decoder_layer, add_embedding, add_head, recipe_for
from splitglm_glm.export.manifest import BUILDER_VERSION, EMBEDDING, HEAD, GraphFile, GraphsManifest, part_names

CALIBRATION = "calibration"  # reported as progress, not a part
Progress = Callable[[str, int, int], None]


def ensure_graphs(
    checkpoint: Checkpoint,
    precision: Precision,
    directory: Path,
    parts: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Build what is missing and return ``directory``.

    Args:
        checkpoint: source of the weights.
        precision: of the graphs; one directory holds one precision.
        directory: where the graphs live, see ``ModelStore.graphs_dir``. Graphs of another builder version, checkpoint
            or precision found there are replaced.
        parts: names from :func:`part_names`; None means all.
        progress: called as ``progress(part, done, total)`` after each part that was found or built, and before the
            calibration of a quantised build as ``progress("calibration", 0, total)``.

    Raises:
        StorageFull: the disk is full; run again after making room, finished parts are kept.
        ModelInvalid: a weight is missing, misshapen or not finite.
    """
    known = part_names(checkpoint.config.shape.layers)
    wanted = known if parts is None else tuple(dict.fromkeys(parts))
    for part in wanted:
        if part not in known:
            raise InternalError(f"{part!r} is not a part of this model")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _exclusive(directory):
            manifest = GraphsManifest.read(directory)
            if manifest is None or not manifest.matches(checkpoint.fingerprint, precision):
                manifest = _empty_manifest(checkpoint, precision)
                manifest.write(directory)  # before any file changes: the old manifest must not vouch for new files
            _remove_leftovers(directory)
            missing = any(manifest.problem(directory, part) is not None for part in wanted)
            calibration = None
            if missing and precision is not Precision.FP32:
                start = (lambda: progress(CALIBRATION, 0, len(wanted))) if progress is not None else None
                calibration = ensure_calibration(checkpoint, directory, start)
            for done, part in enumerate(wanted, start=1):
                if manifest.problem(directory, part) is not None:
                    built = _build_part(checkpoint, precision, calibration, directory, part)
                    manifest = dataclasses.replace(manifest, parts={**manifest.parts, **built})
                    manifest.write(directory)
                if progress is not None:
                    progress(part, done, len(wanted))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                "the disk is full while building graphs", "make room and run again: finished parts are kept"
            ) from error
        raise
    return directory


def _build_part(
    checkpoint: Checkpoint, precision: Precision, calibration: Calibration | None, directory: Path, part: str
) -> dict[str, dict[str, GraphFile]]:
    """Build ``part`` (a tied vocabulary: both of its parts, over one data file) and return what to record."""
    recipe = recipe_for(precision, checkpoint.config.shape)
    if part in (EMBEDDING, HEAD):
        return _build_vocabulary(checkpoint, recipe.vocabulary, calibration, directory, part)
    layer = int(part.rpartition("-")[2])
    weights = checkpoint.layer(layer)
    if calibration is not None:
        weights = equalise_layer(
            weights, calibration.attention_in[layer], calibration.mlp_in[layer], calibration.activated[layer]
        )
    with _staged_data(directory, part) as data:
        graph = Graph(data)
        add_decoder_layer(graph, checkpoint.config, weights, recipe.layer)
    return {part: _finish(directory, part, graph)}


def _build_vocabulary(
    checkpoint: Checkpoint, recipe: WeightRecipe | None, calibration: Calibration | None, directory: Path, part: str
) -> dict[str, dict[str, GraphFile]]:
    config = checkpoint.config
    vocab, hidden, tied = config.shape.vocab, config.shape.hidden, config.tie_word_embeddings
    rows_of = checkpoint.head_rows if part == HEAD or tied else checkpoint.embedding_rows
    factors: Float32 | None = None
    if calibration is not None and (part == HEAD or tied):
        peaks = np.zeros(hidden, np.float32)
        for rows in row_chunks(vocab, hidden):
            np.maximum(peaks, column_peaks(rows_of(rows.start, rows.stop)), out=peaks)
        factors = channel_factors(calibration.head_in, peaks)

    def table_rows(start: int, stop: int) -> Float32:
        rows = rows_of(start, stop)
        return rows if factors is None else np.multiply(rows, factors, out=rows)

    graphs: dict[str, Graph] = {}
    with _staged_data(directory, HEAD if tied else part) as data:
        form = None if recipe is None else recipe.form(hidden)
        if form is None:
            stored = data.append_rows(table_rows, vocab, hidden)
        else:
            stored = data.append_quantised(table_rows, vocab, hidden, form)
        if part == EMBEDDING or tied:
            graphs[EMBEDDING] = Graph(data)
            add_embedding(graphs[EMBEDDING], stored, form, hidden, factors)
        if part == HEAD or tied:
            norm: Float32 = checkpoint.final_norm()
            if factors is not None:
                np.divide(norm, factors, out=norm)
            graphs[HEAD] = Graph(data)
            add_head(graphs[HEAD], config, norm, stored, form)
    return {name: _finish(directory, name, graph) for name, graph in graphs.items()}


@contextlib.contextmanager
def _staged_data(directory: Path, part: str) -> Iterator[DataFile]:
    """A data file that appears under its final name only when it is complete and on disk."""
    final = directory / f"{part}.bin"
    staged = directory / f"{final.name}.{os.getpid()}.part"
    try:
        with staged.open("wb") as stream:
            yield DataFile(final.name, stream)
            stream.flush()
            os.fsync(stream.fileno())
        staged.replace(final)
    finally:
        staged.unlink(missing_ok=True)


def _finish(directory: Path, part: str, graph: Graph) -> dict[str, GraphFile]:
    """Write the ``.onnx`` file of a part whose data file is in place; returns the record of both."""
    content = graph.serialise(part)
    final = directory / f"{part}.onnx"
    staged = directory / f"{final.name}.{os.getpid()}.part"
    try:
        staged.write_bytes(content)
        staged.replace(final)
    finally:
        staged.unlink(missing_ok=True)
    data = directory / graph.data.name
    return {
        final.name: GraphFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest()),
        data.name: GraphFile(bytes=data.stat().st_size),
    }


def _empty_manifest(checkpoint: Checkpoint, precision: Precision) -> GraphsManifest:
    recipe = recipe_for(precision, checkpoint.config.shape)
    return GraphsManifest(
        builder=BUILDER_VERSION,
        fingerprint=checkpoint.fingerprint,
        precision=precision,
        recipe={
            "layer": "float32" if recipe.layer is None else dataclasses.asdict(recipe.layer),
            "vocabulary": "float32" if recipe.vocabulary is None else dataclasses.asdict(recipe.vocabulary),
        },
        parts={},
    )


def _remove_leftovers(directory: Path) -> None:
    """Staged files of a build that was killed; the caller holds the directory's lock, so nobody is writing them."""
    for staged in directory.glob("*.part"):
        staged.unlink(missing_ok=True)


@contextlib.contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    """One builder per directory at a time; a second one waits and then finds the parts built."""
    with (directory / ".lock").open("a+b") as lock:
        if sys.platform == "win32":
            import msvcrt

            while True:  # LK_LOCK gives up after 10 s; a build takes longer
                try:
                    msvcrt.locking(lock.fileno(), msvcrt.LK_LOCK, 1)
                    break
                except OSError:
                    continue
            try:
                yield
            finally:
                lock.seek(0)
                msvcrt.locking(lock.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
