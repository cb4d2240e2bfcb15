"""The reply as its user holds it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from splitglm_edge.closing import CLOSER
from splitglm_edge.reply import ReplyUnderWay
from splitglm_edge.stats import Stats


class Generation:
    """A reply: iterate over it (``for`` or ``async for``) to get text pieces as they become known.

    Only one thread at a time may iterate. ``cancel`` and ``close`` may come from any thread. Dropping it, as ``break``
    in a ``for`` loop over ``agent.generate(...)`` does, closes it.
    """

    def __init__(self, reply: ReplyUnderWay) -> None:
        """Use ``Agent.generate``."""
        self._reply = reply

    @property
    def token_ids(self) -> list[int]:
        """Tokens generated so far, an end token included."""
        return self._reply.token_ids

    @property
    def text(self) -> str:
        """The text so far."""
        return self._reply.text

    @property
    def stats(self) -> Stats | None:
        """The account; None until the reply has ended."""
        return self._reply.stats

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the whole prompt."""
        return self._reply.prompt

    def cancel(self) -> None:
        """End the reply after the current token."""
        self._reply.cancel()

    def close(self) -> None:
        """End the reply now and free what only it holds; waits for the step under way. The conversation goes on."""
        self._reply.close()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return self._reply.next_piece()

    async def __aiter__(self) -> AsyncIterator[str]:
        end = object()
        try:
            while (piece := await asyncio.to_thread(next, self, end)) is not end:
                yield str(piece)
        finally:
            await asyncio.to_thread(self.close)

    def result(self) -> str:
        """Run to the end and return the whole text."""
        for _ in self:
            pass
        return self.text

    def __del__(self) -> None:
        reply: ReplyUnderWay | None = getattr(self, "_reply", None)  # None when __init__ was interrupted
        if reply is not None and reply.under_way:
            CLOSER.end(reply.close)
