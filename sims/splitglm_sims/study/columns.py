"""The requests of one cell as columns, and their file: a line of JSON, then the columns one after another.

Plain little-endian numbers: read without running anything that the file says, equal runs give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, SplitPlan
from splitglm_partitioner.typed_json import parse
from splitglm_sims.world.record import Record
from splitglm_sims.world.scene import Job, LinkScene

FORMAT: Final = "splitglm cell 1"
MAX_HEADER_BYTES: Final = 1 << 20
MAX_ROWS: Final = 20_000_000
MAX_TEXTS: Final = 1000
ARMS: Final = tuple(Arm)
RATE_WINDOW_S: Final = 1.0
"""A packet trace is silent or at full speed within any millisecond: a time line shows the mean of a second."""

_FLOATS: Final = (
    *("at_s", "start_s", "probe_s", "ttft_s", "total_s", "value", "best_value"),
    *("predicted_ttft_s", "predicted_per_token_s", "energy_j", "price", "up_bytes_per_s", "down_bytes_per_s"),
    "deadline_s",
)
_INTEGERS: Final = (
    *("device", "job", "new_tokens", "arm", "s", "t", "draft_tokens", "drafter", "codec"),
    *("best_arm", "best_s", "best_t", "failure"),
)
_LONG: Final = ("uplink_bytes", "downlink_bytes")
DTYPES: Final[Mapping[str, str]] = {
    **dict.fromkeys(_FLOATS, "<f8"),
    **dict.fromkeys(_INTEGERS, "<i4"),
    **dict.fromkeys(_LONG, "<i8"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """One cell's requests in the order of their starts.

    Attributes:
        of: column by name, each ``[requests]``, of the type in ``DTYPES``. Unknown floats are NaN, unknown indices -1.
            ``arm`` and ``best_arm`` index ``ARMS``.
        drafters, codecs, failures: what the columns ``drafter``, ``codec`` and ``failure`` index.
        facts: of the world as a whole, by name.
    """

    of: Mapping[str, npt.NDArray[Any]]
    drafters: tuple[str, ...] = ()
    codecs: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.of["job"])

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.of[name]

    @property
    def per_token_s(self) -> npt.NDArray[np.float64]:
        """``[requests]`` mean seconds of the tokens after the first; NaN for a reply of one token."""
        further = self["new_tokens"] - 1
        spent_s = self["total_s"] - self["ttft_s"]
        return np.where(further > 0, spent_s / np.maximum(further, 1), np.nan)

    @property
    def answered(self) -> npt.NDArray[np.bool_]:
        """``[requests]`` True where there was an answer."""
        return self["failure"] < 0


class ColumnsBuilder:
    """Takes records one by one, of one device or of many."""

    def __init__(self) -> None:
        self._rows: dict[str, list[float]] = {name: [] for name in DTYPES}
        self._texts: dict[str, dict[str, int]] = {"drafters": {}, "codecs": {}, "failures": {}}

    def add(self, records: Iterable[Record], jobs: tuple[Job, ...], link: LinkScene, *, device: int = 0) -> None:
        """The requests of one device, whose ``jobs`` the records number."""
        rates = _rates(link)
        for record in records:
            self._add(record, jobs[record.job], rates(record.start_s), device)

    def build(self, facts: Mapping[str, float] | None = None) -> Columns:
        order = np.lexsort((self._rows["job"], self._rows["device"], self._rows["start_s"]))
        of = {name: np.asarray(values, np.dtype(DTYPES[name]))[order] for name, values in self._rows.items()}
        drafters, codecs, failures = (tuple(texts) for texts in self._texts.values())
        return Columns(of, drafters, codecs, failures, dict(facts or {}))

    def _add(self, record: Record, job: Job, rates: tuple[float, float], device: int) -> None:
        plan, outcome, best = record.plan, record.outcome, record.best_plan
        row: dict[str, float] = {
            "at_s": job.at_s,
            "start_s": record.start_s,
            "probe_s": record.probe_s,
            "ttft_s": outcome.ttft_s,
            "total_s": outcome.total_s,
            "value": record.value,
            "best_value": _known(record.best_value),
            "predicted_ttft_s": _known(record.predicted_ttft_s),
            "predicted_per_token_s": _known(record.predicted_per_token_s),
            "energy_j": _known(outcome.energy_j),
            "price": _known(outcome.price),
            "up_bytes_per_s": rates[0],
            "down_bytes_per_s": rates[1],
            "deadline_s": _known(job.deadline_s),
            "device": device,
            "job": record.job,
            "new_tokens": outcome.new_tokens,
            "arm": ARMS.index(plan.arm),
            "s": plan.s,
            "t": plan.t,
            "draft_tokens": plan.draft_tokens,
            "drafter": self._text("drafters", plan.drafter),
            "codec": self._text("codecs", _codec(plan)),
            "best_arm": -1 if best is None else ARMS.index(best.arm),
            "best_s": -1 if best is None else best.s,
            "best_t": -1 if best is None else best.t,
            "failure": -1 if record.failed is None else self._text("failures", record.failed),
            "uplink_bytes": outcome.uplink_bytes,
            "downlink_bytes": outcome.downlink_bytes,
        }
        for name, value in row.items():
            self._rows[name].append(value)

    def _text(self, kind: str, text: str) -> int:
        texts = self._texts[kind]
        if text not in texts and len(texts) >= MAX_TEXTS:
            text = "other"
        return texts.setdefault(text, len(texts))


def encode(columns: Columns, key: str) -> bytes:
    """The bytes of a cell's file."""
    header = {
        "format": FORMAT,
        "key": key,
        "rows": len(columns),
        "drafters": columns.drafters,
        "codecs": columns.codecs,
        "failures": columns.failures,
        "facts": dict(columns.facts),
    }
    line = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return b"\n".join([line, b"".join(columns[name].tobytes() for name in DTYPES)])


def decode(data: bytes, key: str, where: str) -> Columns:
    """Columns of ``encode``'s bytes; InputError when they are not those of ``key``."""
    line, _, body = data.partition(b"\n")
    if len(line) > MAX_HEADER_BYTES:
        raise InputError(f"{where} is not a cell of a study")
    try:
        header = parse(line.decode(), where)
    except UnicodeDecodeError:
        raise InputError(f"{where} is not a cell of a study") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("key") != key:
        raise InputError(f"{where} is not the cell {key} of a study", "delete it and run the study again")
    rows, facts = header.get("rows"), header.get("facts")
    if type(rows) is not int or not 0 <= rows <= MAX_ROWS or not isinstance(facts, dict):
        raise InputError(f"{where} is damaged", "delete it and run the study again")
    drafters, codecs, failures = (_texts(header.get(name), where) for name in ("drafters", "codecs", "failures"))
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in facts.values()):
        raise InputError(f"{where} is damaged: facts", "delete it and run the study again")
    if len(body) != rows * sum(np.dtype(kind).itemsize for kind in DTYPES.values()):
        raise InputError(f"{where} is cut short", "delete it and run the study again")
    of, at = {}, 0
    for name, kind in DTYPES.items():
        of[name] = np.frombuffer(body, np.dtype(kind), rows, at)
        at += of[name].nbytes
    indexed = (("arm", ARMS), ("best_arm", ARMS), ("drafter", drafters), ("codec", codecs), ("failure", failures))
    for name, known in indexed:
        if rows and not (of[name].min() >= -1 and of[name].max() < len(known)):
            raise InputError(f"{where} is damaged: {name}", "delete it and run the study again")
    return Columns(of, drafters, codecs, failures, {str(name): float(value) for name, value in facts.items()})


def _rates(link: LinkScene) -> Callable[[float], tuple[float, float]]:
    """Mean bytes per second, up and down, over the second that begins at a time of the world."""

    def at(time_s: float) -> tuple[float, float]:
        start_s = time_s + link.offset_s
        stop_s = start_s + RATE_WINDOW_S
        up, down = (trace.bytes_before(stop_s) - trace.bytes_before(start_s) for trace in (link.up, link.down))
        return up / RATE_WINDOW_S, down / RATE_WINDOW_S

    return at


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(f"{where} is damaged", "delete it and run the study again")
    return tuple(value)


def _codec(plan: SplitPlan) -> str:
    return "none" if plan.arm in (Arm.DEVICE, Arm.CLOUD) else plan.codec.value


def _known(value: float | None) -> float:
    return float("nan") if value is None else value
