"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from splitglm_core.errors import InputError

MAX_STOPS = 64
MAX_STOP_CHARS = 1024


class StopMatcher:
    """Passes text on until a stop string is complete, and never lets any part of that stop string through.

    The stop string that is complete first ends the text; where several end at the same character, the longest counts.
    The result is the same however the text is cut into pieces.

    Args:
        stops: at most 64 non-empty strings of at most 1024 characters.

    Raises:
        InputError: too many, too long or empty stop strings.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise InputError("stop strings must be a list, not one string")
        if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
            raise InputError(f"at most {MAX_STOPS} stop strings of 1 to {MAX_STOP_CHARS} characters are allowed")
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        return self._stopped

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be shown now, and whether a stop string has ended the reply."""
        if self._stopped:
            return "", True
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._stopped, self._held = True, ""
            return text[: min(found)[1]], True
        hold = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold], False

    def flush(self) -> str:
        """The end of the text: what was held back as the possible start of a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of ``stop`` that ends ``text``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
