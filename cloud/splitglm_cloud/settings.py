"""Settings of a cloud server: every knob with its default and its bounds."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from splitglm_core.errors import InputError
from splitglm_core.plan import Precision
from splitglm_core.ranges import LayerRange

_POSITIVE = (
    "max_sessions",
    "max_streams",
    "max_streams_per_peer",
    "max_silent_per_peer",
    "kv_budget_bytes",
    "queue_budget_bytes",
    "outbox_budget_bytes",
    "attached_idle_s",
    "handshake_deadline_s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSettings:
    """How to serve one model.

    Attributes:
        model: name in the store or directory of a checkpoint.
        listen: host and port; port 0 lets the system choose.
        layers: decoder layers to load; None loads all.
        text: False loads neither embedding nor head: such a cloud can serve U-shape sessions only.
        runner: ``onnx`` or ``torch``.
        precision: weight precision of the ONNX graphs; torch computes in ``torch_dtype``.
        threads: compute threads; 0 leaves it to the runtime.
        max_sessions: sessions held at once, attached or waiting for their device to come back.
        max_streams: streams open at once.
        max_streams_per_peer: of these, for one address (or IPv6 /64). Devices on this machine share one address and
            may hold them all; raise it where many devices come through one proxy or NAT.
        max_silent_per_peer: connections of one address that have not finished their handshake; not counted on this
            machine either.
        kv_budget_bytes: keys and values of all sessions.
        max_context: positions of one session; 0 means the model's own limit.
        session_ttl_s: how long a session survives without a stream.
        attached_idle_s: how long a session survives whose stream lives but asks nothing of it.
        queue_budget_bytes: payloads of the steps of all sessions that run or wait; beyond it steps are refused.
        outbox_budget_bytes: replies of all streams that their devices have not read; beyond it the stream with most of
            them is closed.
        drain_grace_s: how long running steps may take after a signal to stop.
        handshake_deadline_s: for each message of a handshake and for the first record.
        psk: 32 bytes; with it only paired devices can connect.
        reflection: serve gRPC reflection, for development: nothing bounds how many may ask.
        metrics_port: port of ``/metrics`` on the loopback address; None serves none.
        allow_anonymous: serve a non-loopback address without a pairing key.
    """

    model: str
    listen: str = "127.0.0.1:7411"
    layers: LayerRange | None = None
    text: bool = True
    runner: str = "onnx"
    precision: Precision = Precision.INT8
    torch_dtype: str = "float32"
    threads: int = 0
    max_sessions: int = 256
    max_streams: int = 64
    max_streams_per_peer: int = 16
    max_silent_per_peer: int = 16
    kv_budget_bytes: int = 4 << 30
    max_context: int = 0
    session_ttl_s: float = 60.0
    attached_idle_s: float = 3600.0
    queue_budget_bytes: int = 256 << 20
    outbox_budget_bytes: int = 256 << 20
    drain_grace_s: float = 10.0
    handshake_deadline_s: float = 5.0
    key_file: Path | None = None
    psk: bytes | None = None
    reflection: bool = False
    metrics_port: int | None = None
    allow_anonymous: bool = False

    def __post_init__(self) -> None:
        if self.runner not in ("onnx", "torch"):
            raise InputError(f"runner {self.runner!r} is neither onnx nor torch")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be positive")
        for name in ("max_context", "session_ttl_s", "drain_grace_s"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative")
        if self.psk is not None and len(self.psk) != 32:
            raise InputError("a pairing key has 32 bytes", "make one with `splitglm keys pair`")
        if self.psk is None and not self.allow_anonymous and not is_loopback(split_address(self.listen)[0]):
            raise InputError(
                f"refusing to serve {self.listen} to anybody who can reach it",
                "pair devices with --psk-file, or say --allow-anonymous if the network is yours",
            )


def default_key_file() -> Path:
    """Where a node's identity key is kept unless told otherwise."""
    return Path(platformdirs.user_config_dir("splitglm", appauthor=False)) / "node.key"


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` (``[v6]:port`` too) to its parts.

    Raises:
        InputError: not of that form, or the port is out of range.
    """
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"{address!r} is not HOST:PORT", "write for example 127.0.0.1:7411")
    return host, int(port)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
