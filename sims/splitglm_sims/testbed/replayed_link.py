"""The emulated link as a process of its own, replaying the traces of a ``LinkScene`` from any instant of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from types import TracebackType

from splitglm_core.errors import DeviceError, InputError
from splitglm_partitioner import typed_json
from splitglm_sims.testbed.orders import Answer, Order, Shown
from splitglm_sims.world.scene import LinkScene

_STOP_TIMEOUT_S = 5.0


class ReplayedLink:
    """A link to ``upstream`` (``host:port``): a context manager; connect to its ``address``. Used from one thread.

    The process inherits the processor cores that its parent may use when it is entered, and ends with its parent.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    def __enter__(self) -> ReplayedLink:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "splitglm_sims.testbed.replay_process", self._upstream],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is its parent's, who ends the replies before the link
        )
        try:
            self.address = f"127.0.0.1:{int(self._line())}"
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # the end of its orders ends it
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def show(self, scene: LinkScene) -> None:
        """Emulate this link from now on, its traces at whatever instant they happen to be.

        Raises:
            InputError: it has jitter, a radio that rests or slow start: what the emulator does not do.
        """
        if scene.jitter_s or scene.promotion_s or scene.window_bytes is not None:
            raise InputError(
                "the emulated link has no jitter, no rest and no slow start of its own",
                "state jitter_s=0, promotion_s=0 and window_bytes=None",
            )
        self._order(Order(show=Shown(up=scene.up, down=scene.down, rtt_s=scene.rtt_s), begin_offset_s=None))

    def begin(self, offset_s: float) -> float:
        """Place ``offset_s`` of the traces a little ahead; when it is there, on ``time.monotonic()``."""
        return self._order(Order(show=None, begin_offset_s=offset_s)).began_s

    def carried_bytes(self) -> tuple[int, int]:
        """TCP payload bytes, up and down, that entered the link since it was started."""
        answer = self._order(Order(show=None, begin_offset_s=None))
        return answer.up_bytes, answer.down_bytes

    def _order(self, order: Order) -> Answer:
        process = self._process
        if process is None or process.stdin is None:
            raise InputError("the link is not running", "enter it with `with`")
        try:
            process.stdin.write(typed_json.dumps(order) + "\n")
            process.stdin.flush()
        except OSError as error:
            raise DeviceError(f"the link's process ended: {error}") from error
        return typed_json.loads(Answer, self._line(), "an answer of the link")

    def _line(self) -> str:
        output = None if self._process is None else self._process.stdout
        line = "" if output is None else output.readline()
        if not line:
            raise DeviceError("the link's process ended", "its last words are on standard error")
        return line
