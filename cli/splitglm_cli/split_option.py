"""``--split S[:T]``: the cut that the person fixes, in the words of the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from splitglm_core.errors import InputError, NoFeasiblePlan
from splitglm_core.plan import Arm, Privacy

if TYPE_CHECKING:
    from splitglm_partitioner.request import Fixed


@dataclass(frozen=True, slots=True)
class SplitOption:
    """``s`` alone, or ``s`` and ``t``; not yet compared with a model."""

    s: int
    t: int | None

    @classmethod
    def parse(cls, text: str | None) -> SplitOption | None:
        """None stays None.

        Raises:
            InputError: not of the form S or S:T.
        """
        if text is None:
            return None
        s, colon, t = text.partition(":")
        if not _is_count(s) or (colon and not _is_count(t)):
            raise InputError(
                f"--split {text[:40]!r} is neither S nor S:T", "write for example --split 12 or --split 8:24"
            )
        return cls(int(s), int(t) if colon else None)

    def fixed(self, layers: int, privacy: Privacy) -> Fixed:
        """What the policy has to respect, for a model of ``layers`` layers.

        Raises:
            InputError: the model has no such cut.
            NoFeasiblePlan: the privacy forbids it.
        """
        from splitglm_partitioner.request import Fixed

        if privacy is Privacy.LOCAL and (self.t is not None or self.s < layers):
            raise NoFeasiblePlan(
                f"--split {self.s} sends hidden states, privacy local sends nothing", "--privacy no-text"
            )
        if self.t is not None:
            if not 1 <= self.s < self.t <= layers:
                raise InputError(
                    f"--split {self.s}:{self.t} does not satisfy 1 <= S < T <= {layers}",
                    f"the model has {layers} layers",
                )
            return Fixed(arm=Arm.USHAPE, s=self.s, t=self.t)
        if self.s > layers:
            raise InputError(f"--split {self.s} exceeds the model's {layers} layers", f"give 0 to {layers}")
        if self.s == layers:
            return Fixed(arm=Arm.DEVICE)
        if self.s == 0 and privacy is not Privacy.OPEN:
            raise NoFeasiblePlan(
                f"--split 0 sends the prompt's ids, privacy {privacy.value} does not", "--privacy open"
            )
        if self.s == 0:
            return Fixed(arm=Arm.CLOUD)
        if privacy in (Privacy.OPEN, Privacy.NO_PROMPT):
            return Fixed(arm=Arm.SPLIT, s=self.s)
        return Fixed(arm=Arm.USHAPE, s=self.s, t=layers)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5
