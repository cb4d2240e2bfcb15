"""``splitglm cloud serve``: the cloud's half of one model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from splitglm_cli.options import Debug
from splitglm_cli.progress import building, shown_progress
from splitglm_cli.setting_flags import Config, SettingFlags, resolved, with_setting_flags

if TYPE_CHECKING:
    from splitglm_cloud.server import CloudServer


@with_setting_flags
def serve(
    flags: SettingFlags,
    config: Config = None,
    until_stdin_closes: Annotated[
        bool,
        typer.Option("--until-stdin-closes", help="Stop when standard input ends: for programs that start a server."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, one JSON line on standard output instead of one for people.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Serve layers of MODEL. SIGTERM or Ctrl-C drains and stops; a second one stops at once.

    Every setting can also be a key of the file and a variable SPLITGLM_CLOUD_<KEY>; `cloud config` lists the keys.
    """
    if until_stdin_closes:
        threading.Thread(target=_stop_at_end_of_stdin, name="stdin", daemon=True).start()
    settings = resolved(flags, config).settings()
    import asyncio

    from splitglm_cloud import server as cloud
    from splitglm_cloud.logs import configure_logs
    from splitglm_cloud.settings import split_address

    configure_logs(settings.log_level)
    host = split_address(settings.listen)[0]
    with shown_progress() as progress:
        server = cloud.CloudServer(settings, progress=building(progress, settings.precision.value))
    asyncio.run(cloud.serve(server, ready=lambda port: _announce(server, host, port, as_json)))


def _announce(server: CloudServer, host: str, port: int, as_json: bool) -> None:
    from splitglm_cloud.metrics import METRICS_HOST

    manifest, key = server.manifest, server.node_key.text
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not as_json:
        text = "" if manifest.embedding or manifest.head else ", no text"
        print(
            f"serving {server.settings.model} layers {manifest.layers} of {server.facts.shape.layers}{text} "
            f"with {server.facts.runner} at {address}, key {key}",
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
        "runner": server.facts.runner,
        "paired": server.settings.psk is not None or server.settings.tenants_file is not None,
        "metrics": None if server.metrics_port is None else f"http://{METRICS_HOST}:{server.metrics_port}/metrics",
    }
    print(json.dumps(ready), flush=True)


def _stop_at_end_of_stdin() -> None:
    """The kernel closes the pipe however the other program ends, so that no server outlives it."""
    # Not through sys.stdin: a thread that waits there holds a lock which the interpreter needs at its end.
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
