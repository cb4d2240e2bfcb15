"""gRPC's health service with ``Check`` only: whoever may ask without a handshake must not be able to stay.

``Watch`` and ``List`` (github.com/grpc/grpc, doc/health-checking.md) are answered with UNIMPLEMENTED by gRPC itself,
which tells a client that watches to ask instead.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
from grpc_health.v1 import health, health_pb2

NAME: str = health.SERVICE_NAME


class Health:
    """Whether the server and each of its services take new work.

    Args:
        ready: asked for every answer: whether somebody can compute at this moment.

    Attributes:
        listening: set by the server between its start and its end.
    """

    def __init__(self, *services: str, ready: Callable[[], bool]) -> None:
        self._services = ("", *services)
        self._ready = ready
        self.listening = False

    @property
    def serving(self) -> bool:
        return self.listening and self._ready()

    async def check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        response = health_pb2.HealthCheckResponse
        return response(status=response.SERVING if self.serving else response.NOT_SERVING)

    def add_to(self, server: grpc.aio.Server) -> None:
        handler = grpc.unary_unary_rpc_method_handler(
            self.check,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, {"Check": handler}),))
