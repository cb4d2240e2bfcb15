"""What an operator sees beside metrics and logs: the status socket and traces, started and stopped with the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from splitglm_cloud.gateway.reply_watch import ReplyRecord
from splitglm_cloud.settings import CloudSettings
from splitglm_cloud.status import ServerStatus
from splitglm_cloud.status_files import default_runtime_dir
from splitglm_cloud.status_server import StatusServer
from splitglm_cloud.tracing import Tracing
from splitglm_core.errors import DeviceError

log = logging.getLogger(__name__)


class Operation:
    """Raises ``DeviceError`` when traces are asked for and OpenTelemetry is not installed.

    Args:
        snapshot: what the server is at this moment; called on the event loop.
    """

    def __init__(self, settings: CloudSettings, snapshot: Callable[[], ServerStatus]) -> None:
        directory = settings.runtime_dir or default_runtime_dir()
        self._status = StatusServer(directory, snapshot) if settings.status else None
        self._tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint is not None else None

    @property
    def on_reply(self) -> Callable[[ReplyRecord], None] | None:
        """Who is told of finished replies; None when nobody is, so that nothing is kept for it."""
        return None if self._tracing is None else self._tracing.record

    async def start(self) -> None:
        """Answer ``splitglm ps``. A server serves without it too: where that fails a warning is logged."""
        if self._status is not None:
            try:
                await self._status.start()
            except DeviceError as error:
                log.warning("no status for `splitglm ps`: %s", error.one_line())

    async def stop(self) -> None:
        """Stop answering, and send the traces that wait."""
        if self._status is not None:
            await self._status.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
