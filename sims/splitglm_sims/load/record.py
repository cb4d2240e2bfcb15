"""What a generator saw: exact samples by kind and stage, one line per session, and its own lateness.

Samples are kept whole, not in buckets: percentiles are exact, and merging generators is putting their samples together
(percentiles are never averaged). A sample has 8 bytes; a run of a million steps holds some tens of megabytes.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]


class Stage(Enum):
    """What is timed. All but CONNECT, STEP's pauses and LAG count from when it was meant to happen."""

    CONNECT = "connect"  # transport and handshake
    OPEN = "open"  # from the session's intended start to the cloud's consent
    TTFT = "ttft"  # from the session's intended start to its first answer
    TPOT = "tpot"  # between a session's first and last answer, per answer, pauses included
    STEP = "step"  # from when a step was meant to be sent to its answer
    REFUSAL = "refusal"  # from when the refused thing was meant to be sent to its refusal
    LAG = "lag"  # from when this generator meant to do something to when it did


class Outcome(Enum):
    """How a session ended. REFUSED and FAILED come with a reason."""

    OK = "ok"
    STOPPED = "stopped"  # early, as planned: cancelled or vanished
    REFUSED = "refused"  # the cloud said that it is busy
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One session's line.

    Attributes:
        phase, kind: indices into the scenario.
        counted: it arrived after the warm-up.
        at_s: intended start, from the start of the run.
        outcome: how it ended.
        reason: of a refusal or failure: a wire code, or what happened on our side.
        ttft_s: to its first answer; NaN when there was none.
        answers: how many came.
        good: it ended as planned and within the scenario's service level.
    """

    phase: int
    kind: int
    counted: bool
    at_s: float
    outcome: Outcome
    reason: str
    ttft_s: float
    answers: int
    good: bool


MAX_LAG_P99_S: Final = 0.005
MAX_CPU_SHARE: Final = 0.70


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether the generators could be trusted. ``cpu_share`` is of the busiest, of one core."""

    lag_p99_s: float
    cpu_share: float

    @property
    def void(self) -> str:
        """Why the run says nothing about the cloud; empty when it does."""
        reasons = []
        if self.lag_p99_s > MAX_LAG_P99_S:
            reasons.append(f"generator lag p99 {1e3 * self.lag_p99_s:.1f} ms > {1e3 * MAX_LAG_P99_S:.0f} ms")
        if self.cpu_share > MAX_CPU_SHARE:
            reasons.append(f"generator CPU {100 * self.cpu_share:.0f} % > {100 * MAX_CPU_SHARE:.0f} %")
        return ", ".join(reasons)


class Record:
    """Written by one generator while it runs; read after it ended, merged or not."""

    def __init__(self) -> None:
        self._samples: dict[tuple[int, int, Stage], array[float]] = {}
        self._good_at_s = array("d")  # when each answer of a good session came, from the start of the run
        self.sessions: list[Ended] = []
        self.cpu_share = 0.0

    def add(self, phase: int, kind: int, stage: Stage, seconds: float) -> None:
        samples = self._samples.get((phase, kind, stage))
        if samples is None:
            samples = self._samples[phase, kind, stage] = array("d")
        samples.append(seconds)

    def end(self, line: Ended, answers_at_s: Iterable[float]) -> None:
        """A session ended; ``answers_at_s`` are the times of its answers from the start of the run."""
        self.sessions.append(line)
        if line.good:
            self._good_at_s.extend(answers_at_s)

    def samples(self, stage: Stage, *, phase: int | None = None, kind: int | None = None) -> Samples:
        """All samples of a stage, of one phase or kind if named."""
        found = [
            np.frombuffer(values)
            for (in_phase, of_kind, name), values in self._samples.items()
            if name is stage and phase in (None, in_phase) and kind in (None, of_kind)
        ]
        return np.concatenate(found) if found else np.empty(0)

    def good_answers(self, start_s: float, stop_s: float) -> int:
        """Answers of good sessions that came in ``[start_s, stop_s)`` of the run."""
        times = np.frombuffer(self._good_at_s) if self._good_at_s else np.empty(0)
        return int(np.count_nonzero((times >= start_s) & (times < stop_s)))

    def outcomes(self, outcome: Outcome, *, phase: int | None = None) -> Counter[str]:
        """Counted sessions of that outcome by reason."""
        lines = self.sessions
        return Counter(
            line.reason for line in lines if line.outcome is outcome and line.counted and phase in (None, line.phase)
        )

    @property
    def health(self) -> Health:
        lag = self.samples(Stage.LAG)
        return Health(lag_p99_s=float(np.percentile(lag, 99)) if len(lag) else 0.0, cpu_share=self.cpu_share)

    def merge(self, other: Record) -> None:
        """Take in what another generator of the same run saw."""
        for key, values in other._samples.items():
            self._samples.setdefault(key, array("d")).extend(values)
        self._good_at_s.extend(other._good_at_s)
        self.sessions += other.sessions
        self.cpu_share = max(self.cpu_share, other.cpu_share)

    def save(self, path: Path) -> None:
        """Everything into one file, for the process that started this one: a line of JSON, then the samples as f64."""
        samples = sorted(self._samples.items(), key=lambda entry: (entry[0][0], entry[0][1], entry[0][2].value))
        document = {
            "cpu_share": self.cpu_share,
            "good": len(self._good_at_s),
            "samples": [[phase, kind, stage.value, len(values)] for (phase, kind, stage), values in samples],
            "sessions": [
                [s.phase, s.kind, s.counted, s.at_s, s.outcome.value, s.reason, repr(s.ttft_s), s.answers, s.good]
                for s in self.sessions
            ],
        }
        with path.open("wb") as out:
            out.write(json.dumps(document).encode() + b"\n")
            out.write(self._good_at_s.tobytes())
            for _, values in samples:
                out.write(values.tobytes())

    @classmethod
    def load(cls, path: Path) -> Record:
        """What ``save`` wrote."""
        record = cls()
        with path.open("rb") as stored:
            document = json.loads(stored.readline())
            record._good_at_s.fromfile(stored, document["good"])
            for phase, kind, stage, count in document["samples"]:
                values = record._samples[phase, kind, Stage(stage)] = array("d")
                values.fromfile(stored, count)
        record.cpu_share = document["cpu_share"]
        for phase, kind, counted, at_s, outcome, reason, ttft_s, answers, good in document["sessions"]:
            record.sessions.append(
                Ended(
                    phase=phase,
                    kind=kind,
                    counted=counted,
                    at_s=at_s,
                    outcome=Outcome(outcome),
                    reason=reason,
                    ttft_s=float(ttft_s),
                    answers=answers,
                    good=good,
                )
            )
        return record
