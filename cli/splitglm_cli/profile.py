"""``splitglm profile``: measure this device, and the way to a cloud."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from splitglm_cli import options
from splitglm_core.errors import InputError
from splitglm_core.plan import Precision

if TYPE_CHECKING:
    from pathlib import Path

    from splitglm_partitioner.power import PowerProfile
    from splitglm_partitioner.profiles import CloudProfile, DeviceProfile, LinkEstimate


def profile(
    model: options.Model,
    precision: options.PrecisionOption = Precision.INT8,
    threads: options.Threads = 0,
    compute_watts: Annotated[
        float | None, typer.Option("--compute-watts", min=0.0, help="Power of computing, above the idle device's.")
    ] = None,
    radio_watts: Annotated[
        float | None, typer.Option("--radio-watts", min=0.0, help="Power of the radio while an answer uses the link.")
    ] = None,
    uplink_joules_per_mb: Annotated[
        float | None, typer.Option("--uplink-joules-per-mb", min=0.0, help="On top of that, for 10^6 bytes up.")
    ] = None,
    downlink_joules_per_mb: Annotated[
        float | None, typer.Option("--downlink-joules-per-mb", min=0.0, help="The same for 10^6 bytes down.")
    ] = None,
    measure_power: Annotated[
        bool, typer.Option("--measure-power", help="Measure --compute-watts with the processor's own counters.")
    ] = False,
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
    if measure_power and compute_watts is not None:
        raise InputError("--measure-power and --compute-watts both say the power of computing", "leave one of them out")
    joules = (uplink_joules_per_mb, downlink_joules_per_mb)
    stated = _Stated(compute_watts, radio_watts, *(None if mb is None else 1e-6 * mb for mb in joules))
    device, path = _measure(model, precision, threads, quiet, stated, measure_power=measure_power)
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


class _Stated(NamedTuple):
    """What the command line says of the device's power; None is not said."""

    compute_w: float | None
    radio_w: float | None
    uplink_j_per_byte: float | None
    downlink_j_per_byte: float | None

    def over(self, stored: PowerProfile | None) -> PowerProfile | None:
        """With what was stored before where nothing is said. None when nothing was ever said.

        Raises:
            InputError: some of it is known and some is not: a guess would decide where answers are computed.
        """
        from splitglm_partitioner.power import PowerProfile

        values: dict[str, Any] = {
            name: getattr(stored, name, None) if said is None else said for name, said in self._asdict().items()
        }
        missing = [_POWER_FLAGS[name] for name, value in values.items() if value is None]
        if len(missing) == len(values):
            return None
        if missing:
            raise InputError(f"the device's power lacks {', '.join(missing)}", "state all four; 0 where there is none")
        return PowerProfile(**values)


_POWER_FLAGS: Final = {
    "compute_w": "--compute-watts",
    "radio_w": "--radio-watts",
    "uplink_j_per_byte": "--uplink-joules-per-mb",
    "downlink_j_per_byte": "--downlink-joules-per-mb",
}


def _measure(
    model: str, precision: Precision, threads: int, quiet: bool, stated: _Stated, *, measure_power: bool
) -> tuple[DeviceProfile, Path]:
    from splitglm_cli.progress import building, shown_progress
    from splitglm_core.ranges import LayerRange
    from splitglm_edge.probe import decoding, load_power, measure_device, profile_path, save_profile
    from splitglm_edge.rapl import EnergyCounters, measured_watts
    from splitglm_glm.export.manifest import GraphsManifest
    from splitglm_glm.opening import open_checkpoint, open_stack
    from splitglm_glm.runtime import RuntimeOptions
    from splitglm_glm.store import ModelStore

    store = ModelStore()
    checkpoint = open_checkpoint(model, store)
    options = RuntimeOptions(threads=threads)
    path = profile_path(store.root, checkpoint.fingerprint, precision, options.thread_count)
    stored = load_power(path)
    counters = EnergyCounters() if measure_power else None  # before anything takes long: there may be none
    power = (stated._replace(compute_w=0.0) if measure_power else stated).over(stored)
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
    if counters is not None:
        layers = LayerRange(0, checkpoint.config.shape.layers)
        power = stated._replace(compute_w=measured_watts(counters, decoding(stack, layers))).over(stored)
    manifest = GraphsManifest.open(graphs, checkpoint.fingerprint, precision)
    device = measure_device(checkpoint, stack, manifest, power=power)
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
        ("sealing", _sealing(device)),
        ("power", _power(device)),
    ]


def _sealing(device: DeviceProfile) -> str:
    if device.seal_s_per_byte is None or device.seal_s_per_record is None:
        return "not measured"
    return f"{1e6 * device.seal_s_per_record:.1f} us a record, {1e9 * device.seal_s_per_byte:.2f} us a kilobyte"


def _power(device: DeviceProfile) -> str:
    power = device.power
    if power is None:
        return "not stated; energy cannot be weighed"
    up, down = 1e6 * power.uplink_j_per_byte, 1e6 * power.downlink_j_per_byte
    return f"computing {power.compute_w:g} W, radio {power.radio_w:g} W, {up:g} J/MB up, {down:g} J/MB down"


def _link_lines(link: LinkEstimate, cloud: CloudProfile) -> list[tuple[str, str]]:
    up, down = link.uplink_bytes_per_s / 1e6, link.downlink_bytes_per_s / 1e6
    text = f"RTT {1e3 * link.rtt_s:.1f} ms, up {up:.1f} MB/s, down {down:.1f} MB/s"
    has = [name for name, there in (("embedding", cloud.has_embedding), ("head", cloud.has_head)) if there]
    return [
        ("link", text),
        ("cloud", f"layers {cloud.served} of {cloud.layers}, {1e6 * cloud.times.decode_s[0]:.0f} us a layer"),
        ("holds", ", ".join(has) or "neither embedding nor head"),
    ]
