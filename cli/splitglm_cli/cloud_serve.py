"""``splitglm cloud serve``: the cloud's half of one model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitglm_cli.opening import read_psk
from splitglm_cli.options import Debug, Model, PskFile
from splitglm_cli.progress import building, shown_progress
from splitglm_core.errors import InputError
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange

if TYPE_CHECKING:
    from splitglm_cloud.server import CloudServer


def serve(
    model: Model,
    listen: Annotated[
        str,
        typer.Option("--listen", metavar="HOST:PORT", envvar="SPLITGLM_LISTEN", help="Port 0: the system chooses."),
    ] = "127.0.0.1:7411",
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="A:B", help="Load only layers [A, B). Default: all.")
    ] = None,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Load neither embedding nor head: only U-shape sessions can be served.")
    ] = False,
    runner: Annotated[str, typer.Option("--runner", envvar="SPLITGLM_RUNNER", help="onnx or torch.")] = "onnx",
    precision: Annotated[
        Precision, typer.Option("--precision", envvar="SPLITGLM_PRECISION", help="Weights of the onnx runner.")
    ] = Precision.INT8,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the torch runner: float32, bfloat16 or float16.")
    ] = "float32",
    threads: Annotated[
        int, typer.Option("--threads", min=0, max=1024, envvar="SPLITGLM_THREADS", help="Compute threads; 0: all.")
    ] = 0,
    max_sessions: Annotated[int, typer.Option("--max-sessions", min=1, help="Conversations held at once.")] = 256,
    max_streams: Annotated[int, typer.Option("--max-streams", min=1, help="Connections open at once.")] = 64,
    kv_mb: Annotated[int, typer.Option("--kv-mb", min=1, help="MiB for keys and values of all sessions.")] = 4096,
    max_context: Annotated[
        int, typer.Option("--max-context", min=0, help="Positions of one session; 0: the model's limit.")
    ] = 0,
    session_ttl: Annotated[
        float, typer.Option("--session-ttl", min=0.0, metavar="SECONDS", help="Life of a session without connection.")
    ] = 60.0,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", envvar="SPLITGLM_KEY_FILE", help="Identity key.")
    ] = None,
    psk_file: PskFile = None,
    reflection: Annotated[bool, typer.Option("--reflection", help="Serve gRPC reflection.")] = False,
    metrics_port: Annotated[
        int | None, typer.Option("--metrics-port", min=0, max=65535, help="Serve /metrics there; 0: any free port.")
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Serve a non-loopback address without a pairing.")
    ] = False,
    log_level: Annotated[
        str, typer.Option("--log-level", envvar="SPLITGLM_LOG_LEVEL", help="debug, info, warning or error.")
    ] = "warning",
    until_stdin_closes: Annotated[
        bool,
        typer.Option("--until-stdin-closes", help="Stop when standard input ends: for programs that start a server."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, one JSON line on standard output instead of one for people.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Serve layers of MODEL. SIGTERM or Ctrl-C drains and stops; a second one stops at once."""
    if log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise InputError(f"{log_level!r} is not a log level", "use debug, info, warning or error")
    if until_stdin_closes:
        threading.Thread(target=_stop_at_end_of_stdin, name="stdin", daemon=True).start()
    import asyncio

    from splitglm_cloud import server as cloud
    from splitglm_cloud.logs import configure_logs
    from splitglm_cloud.settings import CloudSettings, split_address

    configure_logs(log_level)
    settings = CloudSettings(
        model=model,
        listen=listen,
        layers=parse_layers(layers),
        text=not no_text,
        runner=runner,
        precision=precision,
        torch_dtype=dtype,
        threads=threads,
        max_sessions=max_sessions,
        max_streams=max_streams,
        kv_budget_bytes=kv_mb << 20,
        max_context=max_context,
        session_ttl_s=session_ttl,
        key_file=key_file.expanduser() if key_file else None,
        psk=read_psk(psk_file),
        reflection=reflection,
        metrics_port=metrics_port,
        allow_anonymous=allow_anonymous,
    )
    host = split_address(listen)[0]
    with shown_progress() as progress:
        server = cloud.CloudServer(settings, progress=building(progress, precision.value))
    asyncio.run(cloud.serve(server, ready=lambda port: _announce(server, host, port, as_json)))


def parse_layers(text: str | None) -> LayerRange | None:
    """``A:B`` to layers [A, B).

    Raises:
        InputError: not of that form, or empty.
    """
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise InputError(f"--layers {text!r} is not A:B with A < B", "write for example --layers 10:30")
    return LayerRange(int(start), int(stop))


def _announce(server: CloudServer, host: str, port: int, as_json: bool) -> None:
    manifest, key = server.manifest, server.node_key.text
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not as_json:
        text = "" if manifest.embedding or manifest.head else ", no text"
        print(
            f"serving {server.settings.model} layers {manifest.layers} of {server.runner.shape.layers}{text} "
            f"with {server.runner.name} at {address}, key {key}",
            file=sys.stderr,
            flush=True,
        )
        return
    ready = {
        "event": "ready",
        "address": address,
        "key": key,
        "pid": os.getpid(),
        "model": server.settings.model,
        "fingerprint": manifest.fingerprint.hex(),
        "layers": [manifest.layers.start, manifest.layers.stop],
        "embedding": manifest.embedding,
        "head": manifest.head,
        "runner": server.runner.name,
        "paired": server.settings.psk is not None,
        "metrics": None
        if server.metrics_port is None
        else f"http://{address.rpartition(':')[0]}:{server.metrics_port}/metrics",
    }
    print(json.dumps(ready), flush=True)


def _stop_at_end_of_stdin() -> None:
    """The kernel closes the pipe however the other program ends, so that no server outlives it."""
    # Not through sys.stdin: a thread that waits there holds a lock which the interpreter needs at its end.
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
