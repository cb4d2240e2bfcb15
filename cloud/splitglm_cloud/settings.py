"""Settings of a cloud server: every knob once, with its default, its bounds and its help."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from splitglm_cloud.execution.facts import check_runner
from splitglm_cloud.settings_spec import Setting, known_settings
from splitglm_core.errors import InputError
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSettings:
    """How to serve one model. Raises ``InputError`` for what cannot be served.

    From a file, the environment and flags it is made by ``settings_sources.resolve``.
    """

    model: Annotated[str, Setting(help="Name in the store, or directory of a checkpoint.")]
    listen: Annotated[str, Setting(help="HOST:PORT; port 0: the system chooses.", also_env="SPLITGLM_LISTEN")] = (
        "127.0.0.1:7411"
    )
    layers: Annotated[LayerRange | None, Setting(help="Load only layers [A, B). Default: all.")] = None
    text: Annotated[
        bool, Setting(help="Without it neither embedding nor head is loaded: only U-shape sessions can be served.")
    ] = True
    runner: Annotated[
        str,
        Setting(
            help="What computes: onnx, torch, or package.module:factory, a runner of your own.",
            choices=("onnx", "torch"),
            or_check=check_runner,
            also_env="SPLITGLM_RUNNER",
        ),
    ] = "onnx"
    precision: Annotated[Precision, Setting(help="Weights of the onnx runner.", also_env="SPLITGLM_PRECISION")] = (
        Precision.INT8
    )
    torch_dtype: Annotated[
        str,
        Setting(
            help="Weights of the torch runner.", flag="--dtype", choices=("float32", "bfloat16", "float16", "int8")
        ),
    ] = "float32"
    threads: Annotated[
        int, Setting(help="Compute threads; 0: all.", least=0, most=1024, also_env="SPLITGLM_THREADS")
    ] = 0
    exact_batches: Annotated[
        bool,
        Setting(
            help="A token never depends on who shares its batch, not even by rounding. Without it the onnx runner is "
            "faster while nobody shares."
        ),
    ] = True

    # Where the engine runs
    executor: Annotated[
        str,
        Setting(help="The engine in a thread of the server, or in worker processes.", choices=("inline", "process")),
    ] = "inline"
    workers: Annotated[int, Setting(help="Worker processes, each with the whole model.", least=1, most=64)] = 1
    watchdog_s: Annotated[
        float, Setting(help="A worker that gives no sign of life for so long is replaced.", above=0, most=3600)
    ] = 2.0

    # How much is held
    max_sessions: Annotated[int, Setting(help="Sessions held at once, attached or waiting.", least=1)] = 256
    max_sessions_per_tenant: Annotated[int, Setting(help="Of these, of one tenant.", least=1)] = 64
    max_streams: Annotated[int, Setting(help="Connections open at once.", least=1)] = 64
    max_streams_per_peer: Annotated[
        int,
        Setting(
            help="Of these, of one address (or IPv6 /64); raise it where many devices come through one proxy. Devices "
            "on this machine may hold them all.",
            least=1,
        ),
    ] = 16
    max_silent_per_peer: Annotated[
        int, Setting(help="Connections of one address that have not finished their handshake.", least=1)
    ] = 16
    max_context: Annotated[int, Setting(help="Positions of one session; 0: the model's limit.", least=0)] = 0
    session_ttl_s: Annotated[float, Setting(help="Life of a session without a connection.", least=0)] = 60.0
    attached_idle_s: Annotated[
        float, Setting(help="Life of a session whose connection asks nothing of it.", above=0)
    ] = 3600.0
    kv_budget_bytes: Annotated[int, Setting(help="Keys and values of all sessions.", least=1)] = 4 << 30
    kv_high_watermark: Annotated[
        float,
        Setting(
            help="Share of that, held by sessions with work, from which no more prompts are taken.", above=0, most=1
        ),
    ] = 0.92
    kv_admit_watermark: Annotated[
        float,
        Setting(
            help="The same from which the least critical sessions are no longer opened; the others follow one by one.",
            above=0,
            most=1,
        ),
    ] = 0.85
    rebuild_log_bytes: Annotated[
        int,
        Setting(help="Inputs kept to rebuild keys and values that were evicted or lost; 0: devices rebuild.", least=0),
    ] = 256 << 20
    queue_budget_bytes: Annotated[
        int, Setting(help="Payloads of the steps that run or wait; beyond it steps are refused.", least=1)
    ] = 256 << 20
    outbox_budget_bytes: Annotated[
        int,
        Setting(help="Replies that devices have not read; beyond it the fullest connection is closed.", least=1),
    ] = 256 << 20
    price_per_million_tokens: Annotated[
        float,
        Setting(
            help="Price of a million tokens through all layers, told to devices, which may weigh it; 0: none stated.",
            least=0,
            most=1e9,
        ),
    ] = 0.0

    # Who is served when
    sweep_rows: Annotated[int, Setting(help="Rows that one pass over the layers carries.", least=32, most=65536)] = 512
    prefill_rows_beside_decode: Annotated[
        int, Setting(help="Of these, rows of prompts while somebody waits for a token.", least=16, most=65536)
    ] = 64
    max_queue_s: Annotated[
        float,
        Setting(
            help="Work is taken while it should wait no longer than this; after four times as long it is given up.",
            above=0,
            most=3600,
        ),
    ] = 1.0
    tenants_file: Annotated[Path | None, Setting(help="Who is which tenant, with pairings and weights.")] = None
    drain_grace_s: Annotated[
        float, Setting(help="How long running steps may take after a signal to stop.", least=0, most=86400)
    ] = 10.0

    # Who may connect
    handshake_deadline_s: Annotated[
        float, Setting(help="For each message of a handshake and for the first record.", above=0, most=600)
    ] = 5.0
    key_file: Annotated[Path | None, Setting(help="Identity key of this node.", also_env="SPLITGLM_KEY_FILE")] = None
    psk: Annotated[
        bytes | None,
        Setting(
            help="Pairing code (`keys pair`): only paired devices can connect.",
            key="psk_file",
            also_env="SPLITGLM_PSK_FILE",
            secret=True,
        ),
    ] = field(default=None, repr=False)
    allow_anonymous: Annotated[bool, Setting(help="Serve a non-loopback address without a pairing.")] = False
    reflection: Annotated[bool, Setting(help="Serve gRPC reflection: nothing bounds how many may ask.")] = False

    # What is told
    log_level: Annotated[
        str,
        Setting(
            help="Least severe level that is logged.",
            choices=("debug", "info", "warning", "error"),
            also_env="SPLITGLM_LOG_LEVEL",
        ),
    ] = "warning"
    metrics_port: Annotated[
        int | None, Setting(help="Serve /metrics on the loopback address; 0: any free port.", least=0, most=65535)
    ] = None
    status: Annotated[bool, Setting(help="Answer `splitglm ps` and `top` of the same user.")] = True
    runtime_dir: Annotated[
        Path | None,
        Setting(help="Where servers leave their sockets for `ps` and `top`.", also_env="SPLITGLM_RUNTIME_DIR"),
    ] = None
    otlp_endpoint: Annotated[
        str | None, Setting(help="URL of an OpenTelemetry collector (OTLP over HTTP); without it nothing is traced.")
    ] = None

    def __post_init__(self) -> None:
        for known in known_settings(CloudSettings).values():
            known.check(getattr(self, known.name))
        if self.psk is not None and len(self.psk) != 32:
            raise InputError("a pairing key has 32 bytes", "make one with `splitglm keys pair`")
        if self.psk is not None and self.tenants_file is not None:
            raise InputError("a server has one pairing or tenants, not both", "leave out psk_file or tenants_file")
        if self.kv_admit_watermark > self.kv_high_watermark:
            raise InputError("kv_admit_watermark must not be above kv_high_watermark")
        if self.executor == "inline" and self.workers != 1:
            raise InputError("an inline executor has one engine", "use --executor process with --workers")
        if self.otlp_endpoint is not None and not _is_web_address(self.otlp_endpoint):
            raise InputError("otlp_endpoint is not an http(s) URL", "write for example http://127.0.0.1:4318")
        if self.otlp_endpoint is not None and "@" in urlsplit(self.otlp_endpoint).netloc:
            raise InputError(
                "otlp_endpoint must not hold a name or password: settings are shown",
                "give the collector's credentials in OTEL_EXPORTER_OTLP_HEADERS",
            )
        open_to_all = self.psk is None and self.tenants_file is None and not self.allow_anonymous
        if open_to_all and not is_loopback(split_address(self.listen)[0]):
            raise InputError(
                f"refusing to serve {self.listen} to anybody who can reach it",
                "pair devices with --psk-file, or say --allow-anonymous if the network is yours",
            )


def default_key_file() -> Path:
    """Where a node's identity key is kept unless told otherwise."""
    import platformdirs  # the command line reads this file at every start

    return Path(platformdirs.user_config_dir("splitglm", appauthor=False)) / "node.key"


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` (``[v6]:port`` too) to its parts.

    Raises:
        InputError: not of that form, or the port is out of range.
    """
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdecimal() or len(port) > 5 or int(port) > 65535:
        raise InputError(f"{address[:80]!r} is not HOST:PORT", "write for example 127.0.0.1:7411")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # also a port out of range
        return False
