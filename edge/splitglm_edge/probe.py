"""Measures this device once per model and precision, and keeps the profile beside the store."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from splitglm_core.errors import InputError
from splitglm_core.plan import Codec, Precision
from splitglm_core.ranges import LayerRange
from splitglm_core.shapes import ModelShape
from splitglm_glm.checkpoint import Checkpoint
from splitglm_glm.export.manifest import EMBEDDING, HEAD, GraphsManifest, layer_part
from splitglm_glm.measure import measure
from splitglm_glm.stack import LayerStack
from splitglm_glm.store import ModelStore
from splitglm_partitioner import typed_json
from splitglm_partitioner.layer_times import LayerTimes, PrefillPoint
from splitglm_partitioner.power import PowerProfile
from splitglm_partitioner.profiles import CodecTime, DeviceProfile, PrecisionProfile
from splitglm_security.channel import Channel
from splitglm_wire import codec
from splitglm_wire.limits import FRAME_ALIGN

_SEALED_BYTES = 256 << 10
"""Of the larger record whose sealing is timed: a chunk of a prompt."""
_BEYOND_CACHE_BYTES = 128 << 20
"""Weights that a timed pass must read: fewer layers would be timed out of the processor's cache, too fast."""


def profile_path(root: Path, fingerprint: bytes, precision: Precision, threads: int) -> Path:
    """Where the profile of this machine lies; another CPU, thread count or model is another file."""
    machine = f"{platform.machine()}-{os.cpu_count()}c-{threads}t"
    return root / "profiles" / f"{fingerprint.hex()[:16]}-{precision.value}-{machine}.json"


def profile_of(checkpoint: Checkpoint, stack: LayerStack, store: ModelStore, threads: int) -> DeviceProfile:
    """The stored profile of this machine with ``stack``, or else a measured one, which is then stored."""
    path = profile_path(store.root, checkpoint.fingerprint, stack.precision, threads)
    profile = load_profile(path)
    if profile is None:
        graphs = store.graphs_dir(checkpoint.directory, stack.precision)
        manifest = GraphsManifest.open(graphs, checkpoint.fingerprint, stack.precision)
        profile = measure_device(checkpoint, stack, manifest, power=load_power(path))
        save_profile(profile, path)
    return profile


def load_profile(path: Path) -> DeviceProfile | None:
    """A stored profile with the memory that is free now, or None when there is none that can be used.

    One of an older release, which did not measure all that is measured today, is none.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["memory_bytes_free"] = psutil.virtual_memory().available
        profile = DeviceProfile.from_json(json.dumps(raw))
    except (OSError, ValueError, TypeError, InputError):
        return None
    return None if profile.active.times.prefill_s_per_token_per_1k_context is None else profile


def load_power(path: Path) -> PowerProfile | None:
    """The power in a stored profile of any release: its owner stated it, so no measurement may lose it."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))["power"]
        return None if raw is None else typed_json.read(PowerProfile, raw, "power")
    except (OSError, ValueError, TypeError, KeyError, InputError):
        return None


def measure_device(
    checkpoint: Checkpoint, stack: LayerStack, manifest: GraphsManifest, *, power: PowerProfile | None = None
) -> DeviceProfile:
    """Time enough layers to leave the processor's cache, embedding, head, codecs and sealing. About a second for a
    small model.

    The graphs of those layers must exist; parts that were not loaded before are unloaded again.

    Args:
        power: as its owner states it, or as it was measured; it is kept in the profile.
    """
    shape = checkpoint.config.shape
    layer_bytes = manifest.weight_bytes(layer_part(0))
    layers = LayerRange(0, min(shape.layers, -(-_BEYOND_CACHE_BYTES // max(1, layer_bytes))))
    free_bytes = psutil.virtual_memory().available
    before = set(stack.loaded_parts())
    seconds = measure(stack, layers, shape=shape, embedding=True, head=True, now_s=time.perf_counter)
    for part in set(stack.loaded_parts()) - before:
        index = part.removeprefix("layer-")
        if index.isdecimal():
            stack.unload(LayerRange(int(index), int(index) + 1))
        else:
            stack.unload(LayerRange(0, 0), embedding=part == EMBEDDING, head=part == HEAD)
    times = LayerTimes(
        decode_s=(seconds.decode_s,) * shape.layers,
        decode_context_tokens=seconds.decode_context_tokens,
        decode_s_per_1k_context=seconds.decode_s_per_1k_context,
        prefill=tuple(
            PrefillPoint(chunk_tokens=chunk, s_per_token=(value,) * shape.layers)
            for chunk, value in seconds.prefill_s_per_token.items()
        ),
        prefill_s_per_token_per_1k_context=seconds.prefill_s_per_token_per_1k_context,
    )
    here = PrecisionProfile(
        precision=stack.precision,
        times=times,
        embed_s=seconds.embed_s,
        head_s=seconds.head_s,
        layer_weight_bytes=layer_bytes,
        embedding_weight_bytes=manifest.weight_bytes(EMBEDDING),
        head_weight_bytes=manifest.weight_bytes(HEAD),
    )
    seal_s_per_byte, seal_s_per_record = seal_seconds()
    return DeviceProfile(
        layers=shape.layers,
        precision=stack.precision,
        precisions=(here,),
        memory_bytes_free=free_bytes,
        kv_bytes_per_token_per_layer=shape.kv_bytes_per_token(layers=1),
        max_layers=shape.layers,
        codecs=tuple(CodecTime(codec=kind, s_per_token=_codec_seconds(kind, shape)) for kind in Codec),
        seal_s_per_byte=seal_s_per_byte,
        seal_s_per_record=seal_s_per_record,
        power=power,
    )


def save_profile(profile: DeviceProfile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(f".{os.getpid()}.tmp")
    staged.write_text(profile.to_json(), encoding="utf-8")
    staged.replace(path)


def seal_seconds(repetitions: int = 15) -> tuple[float, float]:
    """Seconds to seal, and likewise to open, a byte and a record, with the channel that links use."""
    keys = (bytes(range(32)), bytes(range(32, 64)))
    device, cloud = (
        Channel(initiator=side, keys=keys, handshake_hash=bytes(32), prologue=b"probe") for side in (True, False)
    )
    small_s = _exchange_seconds(device, cloud, FRAME_ALIGN, repetitions)
    large_s = _exchange_seconds(device, cloud, _SEALED_BYTES, repetitions)
    per_byte_s = max(0.0, large_s - small_s) / (_SEALED_BYTES - FRAME_ALIGN)
    return float(f"{per_byte_s:.3g}"), float(f"{max(0.0, small_s - FRAME_ALIGN * per_byte_s):.3g}")


def _exchange_seconds(sender: Channel, receiver: Channel, size: int, repetitions: int) -> float:
    """Half of sealing and opening one record."""
    text, seconds = bytes(size), []
    for _ in range(repetitions):
        started_s = time.perf_counter()
        receiver.open(sender.seal(text))
        seconds.append((time.perf_counter() - started_s) / 2)
    return median(seconds)


def decoding(stack: LayerStack, layers: LayerRange) -> Callable[[], None]:
    """One decode pass through ``layers`` per call, as in a reply: the work whose power is measured."""
    room = 512
    cache = stack.new_cache(layers, room)

    def one_pass() -> None:
        if cache.length >= room:
            cache.truncate(0)
        stack.forward(stack.embed(np.zeros(1, np.int64)), cache, layers)

    one_pass()  # what is loaded late is loaded now
    return one_pass


def _codec_seconds(kind: Codec, shape: ModelShape, tokens: int = 32) -> float:
    """Seconds to encode and decode one position, measured over a chunk."""
    noise = np.random.default_rng(0).standard_normal((tokens, shape.hidden), np.float32)
    best = float("inf")
    for _ in range(5):
        started_s = time.perf_counter()
        payload = codec.encode(noise, kind, base=1)
        codec.decode(payload, kind, rows=tokens, hidden=shape.hidden, base=1)
        best = min(best, time.perf_counter() - started_s)
    return float(f"{best / (2 * tokens):.3g}")
