"""What a load run does, as frozen values read from TOML: phases of arrivals and a mix of session kinds."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any, Final

from splitglm_core.criticality import Criticality
from splitglm_core.errors import InputError
from splitglm_core.plan import Arm, Codec
from splitglm_partitioner.typed_json import read, to_plain
from splitglm_wire.limits import MAX_CONTEXT, MAX_GENERATE, MAX_ROWS, MAX_SESSIONS_PER_STREAM

MAX_FILE_BYTES: Final = 1 << 20
MAX_GENERATORS: Final = 64
MAX_STREAMS: Final = 1024
MAX_RETRIES: Final = 100
MAX_PHASES: Final = 64
MAX_SECONDS: Final = 7 * 86400.0
SUFFIX: Final = ".toml"


class Process(Enum):
    """How arrivals follow each other."""

    POISSON = "poisson"
    GAMMA = "gamma"  # gaps are gamma distributed: bursts where the shape is below 1
    CONSTANT = "constant"
    TRACE = "trace"  # times as given


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of the run. Exactly one of the three rates says what arrives.

    Attributes:
        name: of its line in the report.
        seconds: how long sessions arrive.
        rate_per_s: sessions per second.
        times_capacity: sessions per second as a multiple of the capacity that the probe found.
        closed_sessions: the capacity probe: as many sessions at once, each followed by another. Only the first phase.
    """

    name: str
    seconds: float
    rate_per_s: float | None = None
    times_capacity: float | None = None
    closed_sessions: int | None = None

    def __post_init__(self) -> None:
        _require(bool(self.name), "a phase has a name")
        _require(0.0 < self.seconds <= MAX_SECONDS, "seconds of a phase must lie in (0, 7 days]")
        rates = [self.rate_per_s, self.times_capacity, self.closed_sessions]
        _require(
            sum(rate is not None for rate in rates) == 1,
            f"phase {self.name!r} states exactly one of rate_per_s, times_capacity, closed_sessions",
        )
        _require(all(rate is None or 0 <= rate <= 1e6 for rate in rates), "rates must lie in [0, 1e6]")
        _require(self.closed_sessions is None or self.closed_sessions >= 1, "closed_sessions must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of session of the mix. Pairs are half-open ranges ``[low, high)``, drawn uniformly.

    Attributes:
        name: of its line in the report.
        share: weight in the mix.
        arm: split, ushape or cloud.
        cut: where ``s`` may lie, as shares of the layers; rounded, and kept in ``[1, N)``. The cloud arm has none.
        prompt_rows: positions of the prompt.
        tokens: answers after it: tokens, or hidden states for the device's head.
        chunk_rows: positions of one prefill step.
        codec: of hidden states.
        think_s: mean of the exponential pause between an answer and the next step: the device's own layers.
        criticality: 1 (most) to 4.
        tenants: so many devices send sessions of this kind, each over streams of its own.
        cancel_chance: the user stops after a part of the answers.
        disconnect_chance: the device vanishes without a goodbye after a part of the answers.
        slow_chance: the device stops reading for ``slow_read_s`` after its first answer.
        leak_chance: the session is never closed. Only for showing that a leak is found.
        deadline_s: told to the cloud; None tells none.
    """

    name: str
    arm: Arm
    share: float = 1.0
    cut: tuple[float, float] = (0.0, 1.0)
    prompt_rows: tuple[int, int] = (16, 65)
    tokens: tuple[int, int] = (8, 33)
    chunk_rows: int = 64
    codec: Codec = Codec.BF16
    think_s: float = 0.0
    criticality: Criticality = Criticality.CRITICAL
    tenants: int = 1
    cancel_chance: float = 0.0
    disconnect_chance: float = 0.0
    slow_chance: float = 0.0
    slow_read_s: float = 1.0
    leak_chance: float = 0.0
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        _require(bool(self.name), "a kind has a name")
        _require(self.arm is not Arm.DEVICE, "a session on the device alone puts no load on a cloud")
        _require(0.0 < self.share <= 1e6, "share must lie in (0, 1e6]")
        _require(len(self.cut) == 2 and 0.0 <= self.cut[0] <= self.cut[1] <= 1.0, "cut is [low, high] within [0, 1]")
        _range("prompt_rows", self.prompt_rows, MAX_CONTEXT)
        _range("tokens", self.tokens, MAX_GENERATE)
        _require(1 <= self.chunk_rows <= MAX_ROWS, f"chunk_rows must lie in [1, {MAX_ROWS}]")
        _require(1 <= self.tenants <= MAX_STREAMS, f"tenants must lie in [1, {MAX_STREAMS}]")
        for name in ("think_s", "slow_read_s"):
            _require(0.0 <= getattr(self, name) <= 3600.0, f"{name} must lie in [0, 3600] seconds")
        for name in ("cancel_chance", "disconnect_chance", "slow_chance", "leak_chance"):
            _require(0.0 <= getattr(self, name) <= 1.0, f"{name} must lie in [0, 1]")
        _require(self.cancel_chance + self.disconnect_chance <= 1.0, "a session ends in one way")
        _require(self.deadline_s is None or 0.0 < self.deadline_s <= 86400.0, "deadline_s must lie in (0, 86400]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A load run.

    Attributes:
        name, about: for the report.
        phases: in order, without a pause between those that have a rate.
        kinds: the mix.
        seed: of every draw; equal seeds give equal schedules.
        process: of the arrivals.
        burstiness: shape of gamma gaps; 1 is Poisson, less is burstier.
        trace_s: arrival times from the start of a phase, ascending; repeated as a whole to fill it, at their own pace.
        warmup_s: of every phase; what arrives then is sent but not counted.
        patience_s: an answer that takes longer fails its session.
        retries: how often a refused session is tried again, after the pause that the cloud asks for; 0: a refusal is
            the result.
        generators: processes that send.
        streams_per_tenant: connections of one device, per generator.
        sessions_per_stream: at most; with every stream full a session fails on our side and is counted.
        slo_ttft_s, slo_step_s: sessions beyond are not goodput; None sets no such bound.
    """

    name: str
    phases: tuple[Phase, ...]
    kinds: tuple[Kind, ...]
    about: str = ""
    seed: int = 1
    process: Process = Process.POISSON
    burstiness: float = 1.0
    trace_s: tuple[float, ...] = ()
    warmup_s: float = 0.0
    patience_s: float = 30.0
    retries: int = 0
    generators: int = 1
    streams_per_tenant: int = 2
    sessions_per_stream: int = MAX_SESSIONS_PER_STREAM
    slo_ttft_s: float | None = None
    slo_step_s: float | None = None

    def __post_init__(self) -> None:
        _require(0 < len(self.phases) <= MAX_PHASES, f"a scenario has 1 to {MAX_PHASES} phases")
        _require(bool(self.kinds), "a scenario has at least one kind of session")
        for what, names in (("phases", [p.name for p in self.phases]), ("kinds", [k.name for k in self.kinds])):
            _require(len(set(names)) == len(names), f"two {what} have the same name")
        for phase in self.phases[1:]:
            _require(phase.closed_sessions is None, "only the first phase may probe the capacity")
        if any(phase.times_capacity is not None for phase in self.phases):
            _require(self.phases[0].closed_sessions is not None, "times_capacity needs a probe as the first phase")
        _require(0 <= self.seed < 1 << 63, "seed must lie in [0, 2**63)")
        _require(0.01 <= self.burstiness <= 100.0, "burstiness must lie in [0.01, 100]")
        _require((self.process is Process.TRACE) == bool(self.trace_s), "trace_s goes with process = trace")
        ascending = all(a <= b for a, b in zip(self.trace_s, self.trace_s[1:], strict=False))
        _require(not self.trace_s or (self.trace_s[0] >= 0.0 and ascending), "trace_s must ascend from 0 or later")
        _require(not self.trace_s or self.trace_s[-1] > 0.0, "trace_s must not end at 0")
        _require(all(0.0 <= self.warmup_s < phase.seconds for phase in self.phases), "warmup_s is within every phase")
        _require(0.0 < self.patience_s <= 3600.0, "patience_s must lie in (0, 3600]")
        _require(0 <= self.retries <= MAX_RETRIES, f"retries must lie in [0, {MAX_RETRIES}]")
        _require(1 <= self.generators <= MAX_GENERATORS, f"generators must lie in [1, {MAX_GENERATORS}]")
        _require(1 <= self.streams_per_tenant <= MAX_STREAMS, f"streams_per_tenant must lie in [1, {MAX_STREAMS}]")
        most = MAX_SESSIONS_PER_STREAM
        _require(1 <= self.sessions_per_stream <= most, f"sessions_per_stream must lie in [1, {most}]")
        for bound in (self.slo_ttft_s, self.slo_step_s):
            _require(bound is None or 0.0 < bound < math.inf, "a bound of the service level must be positive")


def shipped() -> list[str]:
    """Names of the scenarios that come with the package."""
    files = resources.files(__package__).joinpath("scenarios").iterdir()
    return sorted(file.name.removesuffix(SUFFIX) for file in files if file.name.endswith(SUFFIX))


def load_scenario(name_or_path: str) -> Scenario:
    """A scenario by its shipped name or from a TOML file.

    Raises:
        InputError: there is none, or it is malformed; the message names the field.
    """
    if name_or_path in shipped():
        text = resources.files(__package__).joinpath("scenarios", name_or_path + SUFFIX).read_text("utf-8")
        return parse_scenario(text, name_or_path)
    path = Path(name_or_path).expanduser()
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path} is too long for a scenario")
        return parse_scenario(path.read_text("utf-8"), path.name)
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"there is no scenario {name_or_path!r}", f"name a file, or one of {', '.join(shipped())}"
        ) from None


def parse_scenario(text: str, where: str) -> Scenario:
    """TOML to a scenario; fields that are left out have their defaults."""
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not TOML: {error}") from None
    for key, kind in (("phases", Phase), ("kinds", Kind)):
        if isinstance(raw.get(key), list):
            raw[key] = [_with_defaults(kind, item) if isinstance(item, dict) else item for item in raw[key]]
    return read(Scenario, _with_defaults(Scenario, raw), where)


def _with_defaults(kind: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    fields = dataclasses.fields(kind)
    defaults = {f.name: to_plain(f.default) for f in fields if f.default is not dataclasses.MISSING}
    return defaults | given


def _range(name: str, bounds: tuple[int, ...], most: int) -> None:
    if len(bounds) != 2 or not 1 <= bounds[0] < bounds[1] <= most + 1:
        raise InputError(f"{name} is a half-open range [low, high) within [1, {most}]")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InputError(otherwise)
