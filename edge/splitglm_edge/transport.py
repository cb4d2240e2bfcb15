"""The gRPC channel under a link: its options, when it is ready, and what its statuses mean to us."""

from __future__ import annotations

import queue
import time
from typing import Any

import grpc

from splitglm_core.errors import (
    DeadlineExceeded,
    LinkError,
    Overloaded,
    SecurityError,
    SplitGlmError,
    VersionMismatch,
)
from splitglm_wire.limits import MAX_GRPC_MESSAGE_BYTES

_READY = grpc.ChannelConnectivity.READY
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_BYTES),
    # A hung peer process is noticed by pings only with an explicit ping timeout (measured: 60 s without it).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A new channel must not inherit the back-off of one that failed a moment ago.
    ("grpc.use_local_subchannel_pool", 1),
)


def await_ready(channel: grpc.Channel, address: str, timeout_s: float) -> None:
    """Until the transport is connected; a refused connection is told at once, not at the end of the timeout."""
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    on_change = states.put
    deadline_s = time.monotonic() + timeout_s
    channel.subscribe(on_change, try_to_connect=True)
    try:
        while (state := states.get(timeout=max(0.0, deadline_s - time.monotonic()))) is not _READY:
            if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                break
        else:
            return
    except queue.Empty:
        pass
    finally:
        channel.unsubscribe(on_change)
    raise LinkError(
        f"no splitglm cloud answers at {address}", "start one with `splitglm cloud serve`, or check the address"
    )


def error_of(error: Any, address: str) -> SplitGlmError:
    """The one place where a gRPC status becomes an error of ours."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.ABORTED:
        return SecurityError()
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return VersionMismatch(
            f"{address} speaks another protocol version", "use the same splitglm release on both sides"
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Overloaded(f"{address} is busy", "wait a moment and try again", code="OVERLOADED", retry_after_s=1.0)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return LinkError(f"{address} is a gRPC server but not a splitglm cloud", "check the address")
    if code is grpc.StatusCode.CANCELLED:
        return DeadlineExceeded(f"{address} did not answer in time", "check the address and the network")
    return LinkError(f"the connection to {address} broke ({code.name}: {details[:80]})", "check that the cloud runs")
