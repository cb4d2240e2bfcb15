"""How often and how long a device asks a busy cloud again before it does something else. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

MAX_TRIES: Final = 3
"""In a row without progress: who is refused more often adds to the load and gains nothing."""
_FIRST_PAUSE_S: Final = 0.1
_JITTER: Final = 0.25
"""The cloud spreads its hints already; this keeps devices apart that were told the same."""

_RECONNECT_PAUSES_S: Final = (0.0, 0.05, 0.3, 1.0)


def reconnect_pauses_s(chance: Callable[[], float]) -> Iterator[float]:
    """Before each attempt to connect again, seconds; ``chance`` is uniform in [0, 1).

    A service that restarts is back in a moment, or it will be noticed by those who can wait. All its devices lost it at
    the same time, so each pause is spread around its middle.
    """
    return (pause_s * (0.5 + chance()) for pause_s in _RECONNECT_PAUSES_S)


class Patience:
    """Of one reply.

    Args:
        budget_s: waited at most in all without progress.
    """

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s
        self._tries = 0
        self._waited_s = 0.0

    def progressed(self) -> None:
        """The cloud did something for us."""
        self._tries, self._waited_s = 0, 0.0

    def pause_s(self, hint_s: float, *, left_s: float, chance: float) -> float | None:
        """How long to wait before asking again, None to give up.

        Args:
            hint_s: what the cloud said, 0 when it said nothing; never is it asked sooner.
            left_s: to the reply's deadline.
            chance: uniform in [0, 1).
        """
        wait_s = (hint_s or _FIRST_PAUSE_S * 2**self._tries) * (1.0 + _JITTER * chance)
        if self._tries >= MAX_TRIES or wait_s >= left_s or self._waited_s + wait_s > self._budget_s:
            return None
        self._tries += 1
        self._waited_s += wait_s
        return wait_s
