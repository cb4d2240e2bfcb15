"""Parameters of sampling: carried by the wire, obeyed by the sampler on either side."""

from __future__ import annotations

import math
from dataclasses import dataclass

from splitglm_core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen from logits.

    Penalties look at the tokens generated in this reply only, never at the prompt: then the same request gives the
    same tokens wherever the sampler runs, and prompt ids need never leave the device for a penalty's sake.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set with at least this probability.
        repetition_penalty: logits of generated tokens are divided (positive) or multiplied (negative) by it (CTRL).
        frequency_penalty: subtracted once per earlier occurrence (OpenAI's definition).
        presence_penalty: subtracted once if the token occurred at all (OpenAI's definition).
        seed: key of the counter-based noise; the token at position p is a function of (logits, seed, p).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = (self.temperature, self.top_p, self.repetition_penalty, self.frequency_penalty, self.presence_penalty)
        if not all(math.isfinite(x) for x in numbers):
            raise InputError("sampling parameters must be finite numbers")
        # Below 1e-4 scaled logits overflow; so small a temperature means greedy, which is said with 0.
        if self.temperature != 0.0 and not 1e-4 <= self.temperature <= 100.0:
            raise InputError(f"temperature {self.temperature} is neither 0 nor in [0.0001, 100]", "use 0 for greedy")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p {self.top_p} is outside (0, 1]")
        if not 0 <= self.top_k <= 2**20:
            raise InputError(f"top_k {self.top_k} is outside [0, {2**20}]")
        if not 0.01 <= self.repetition_penalty <= 100.0:
            raise InputError(f"repetition_penalty {self.repetition_penalty} is outside [0.01, 100]")
        if not (abs(self.frequency_penalty) <= 100.0 and abs(self.presence_penalty) <= 100.0):
            raise InputError("frequency_penalty and presence_penalty must lie in [-100, 100]")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed {self.seed} is outside [0, 2**64)")

    @property
    def needs_history(self) -> bool:
        """True when the choice depends on the tokens already generated."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
