"""``splitglm profile``: measure this device, and the way to a cloud."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from splitglm_cli import options
from splitglm_core.plan import Precision

if TYPE_CHECKING:
    from pathlib import Path

    from splitglm_partitioner.profiles import CloudProfile, DeviceProfile, LinkEstimate


def profile(
    model: options.Model,
    precision: options.PrecisionOption = Precision.INT8,
    threads: options.Threads = 0,
    cloud: options.Cloud = None,
    cloud_key: options.CloudKey = None,
    trust_first_use: options.TrustFirstUse = False,
    psk_file: options.PskFile = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure this device with MODEL now and keep the result, which later plans use; with --cloud also the link."""
    from splitglm_cli.opening import CloudOptions, open_agent

    where = CloudOptions(address=cloud, key=cloud_key, trust_first_use=trust_first_use, psk_file=psk_file).resolve()
    device, path = _measure(model, precision, threads, quiet)
    document: dict[str, Any] = {"stored": str(path), "device": json.loads(device.to_json())}
    lines = _device_lines(device)
    if where is not None:
        with open_agent(model, where, precision=precision, threads=threads, quiet=quiet) as agent:
            link, far = agent.link()
        from splitglm_partitioner.typed_json import to_plain

        document |= {"link": to_plain(link), "cloud": json.loads(far.to_json())}
        lines += _link_lines(link, far)
    if as_json:
        print(json.dumps(document))
        return
    from splitglm_cli.text_table import text_facts

    print(text_facts(lines))
    if not quiet:
        print(f"kept in {path}", file=sys.stderr)


def _measure(model: str, precision: Precision, threads: int, quiet: bool) -> tuple[DeviceProfile, Path]:
    from splitglm_cli.progress import building, shown_progress
    from splitglm_core.ranges import LayerRange
    from splitglm_edge.probe import measure_device, profile_path, save_profile
    from splitglm_glm.export.manifest import GraphsManifest
    from splitglm_glm.opening import open_checkpoint, open_stack
    from splitglm_glm.runtime import RuntimeOptions
    from splitglm_glm.store import ModelStore

    store = ModelStore()
    checkpoint = open_checkpoint(model, store)
    options = RuntimeOptions(threads=threads)
    with shown_progress(quiet=quiet) as progress:
        stack = open_stack(
            checkpoint,
            precision,
            layers=LayerRange(0, checkpoint.config.shape.layers),
            embedding=True,
            head=True,
            store=store,
            options=options,
            progress=building(progress, precision.value),
        )
    graphs = store.graphs_dir(checkpoint.directory, precision)
    device = measure_device(checkpoint, stack, GraphsManifest.open(graphs, checkpoint.fingerprint, precision))
    path = profile_path(store.root, checkpoint.fingerprint, precision, options.thread_count)
    save_profile(device, path)
    return device, path


def _device_lines(device: DeviceProfile) -> list[tuple[str, str]]:
    here = device.active
    layer_s = here.times.decode_s[0]
    token_s = sum(here.times.decode_s) + here.embed_s + here.head_s
    prefill = ", ".join(
        f"{1 / (sum(point.s_per_token) + here.embed_s):,.0f} tok/s in chunks of {point.chunk_tokens}"
        for point in here.times.prefill
    )
    codecs = ", ".join(f"{entry.codec.value} {1e6 * entry.s_per_token:.1f} us" for entry in device.codecs)
    return [
        ("device", f"{device.layers} layers, {device.precision.value}, {device.memory_bytes_free / 1e9:.1f} GB free"),
        ("decode", f"{1 / token_s:.1f} tok/s; {1e6 * layer_s:.0f} us a layer, {1e6 * here.head_s:.0f} us the head"),
        ("prefill", prefill),
        ("codecs", f"{codecs} per hidden state"),
    ]


def _link_lines(link: LinkEstimate, cloud: CloudProfile) -> list[tuple[str, str]]:
    up, down = link.uplink_bytes_per_s / 1e6, link.downlink_bytes_per_s / 1e6
    text = f"RTT {1e3 * link.rtt_s:.1f} ms, up {up:.1f} MB/s, down {down:.1f} MB/s"
    has = [name for name, there in (("embedding", cloud.has_embedding), ("head", cloud.has_head)) if there]
    return [
        ("link", text),
        ("cloud", f"layers {cloud.served} of {cloud.layers}, {1e6 * cloud.times.decode_s[0]:.0f} us a layer"),
        ("holds", ", ".join(has) or "neither embedding nor head"),
    ]
