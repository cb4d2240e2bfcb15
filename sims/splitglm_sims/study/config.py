"""What a study runs, as frozen values read from TOML: link classes, workloads, strategies, seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tomllib
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

from splitglm_core.errors import InputError
from splitglm_core.plan import Privacy
from splitglm_partitioner.request import Objective
from splitglm_partitioner.typed_json import dumps, read, to_plain
from splitglm_sims.links.fitted import Use
from splitglm_sims.strategies.registry import OptionValue

MAX_SEEDS: Final = 1000
MAX_REQUESTS: Final = 1_000_000
MAX_SECONDS: Final = 30 * 86400.0
MAX_DEVICES: Final = 100_000
MAX_CELLS: Final = 100_000
MAX_OPTIONS: Final = 32


class Role(Enum):
    """Which part a strategy plays in the comparison."""

    JUDGED = "judged"  # its regret and its guard are held against the goals
    SIDE = "side"  # one of the two single sides: device-only or cloud-only; also a fixed arm
    FIXED = "fixed"  # a fixed arm; the best of them in hindsight is a yardstick
    RIVAL = "rival"  # anything else


class Compare(Enum):
    """Of which strategies' requests the best plan is found too. It takes dozens of times as long as the request."""

    NONE = "none"
    JUDGED = "judged"
    ALL = "all"


class RttSource(Enum):
    """Where the round trips of a recorded link come from."""

    STATED = "stated"  # rtt_s and jitter_s
    HAIRPIN = "hairpin"  # third column of the downlink's file
    PINGS = "pings"  # column PINGAVG of the downlink's file


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEntry:
    """One class of links: a generated one that is shipped, or trace files.

    Attributes:
        name: in the report, and of the shipped class unless ``up`` or ``down`` is given.
        use: tuning or reporting; None for that of the shipped class, and reporting for trace files.
        up, down: trace files, relative to the folder of traces. Each seed begins at a place of its own in them.
        up_per_down: the uplink's rate over the downlink's, where only one direction was recorded.
        because: why that ratio.
        round_trips: of a recorded link.
        rtt_s, jitter_s: where they are stated.
        rest_after_s, promotion_s: as in ``LinkScene``; None and 0 for a recorded link that never rests.
    """

    name: str
    use: Use | None = None
    up: str | None = None
    down: str | None = None
    up_per_down: float | None = None
    because: str = ""
    round_trips: RttSource = RttSource.STATED
    rtt_s: float | None = None
    jitter_s: float = 0.0
    rest_after_s: float | None = None
    promotion_s: float = 0.0

    def __post_init__(self) -> None:
        _require(bool(self.name), "a link class has a name")
        _require(self.up != "" and self.down != "", "the path of a trace is not empty")
        recorded = (self.rest_after_s, self.rtt_s, self.up_per_down) != (None, None, None) or self.jitter_s > 0.0
        _require(not (self.generated and recorded), f"link {self.name!r} states more than its name but no trace files")
        _require(
            self.generated or self.stated == (self.rtt_s is not None), "rtt_s is given where round trips are stated"
        )
        _require(self.stated or self.down is not None, "round trips are read from the downlink's file")
        one = (self.up is None) != (self.down is None)
        _require(one == (self.up_per_down is not None), "up_per_down goes with exactly one of up and down")
        _require(one == bool(self.because), "because goes with up_per_down: say where the ratio comes from")
        _require(self.rtt_s is None or 0.0 < self.rtt_s <= 10.0, "rtt_s must lie in (0, 10]")
        _require(
            0.0 <= self.jitter_s <= 10.0 and 0.0 <= self.promotion_s <= 60.0, "jitter_s or promotion_s is too large"
        )
        _require(self.rest_after_s is None or 0.0 < self.rest_after_s <= 3600.0, "rest_after_s must lie in (0, 3600]")

    @property
    def generated(self) -> bool:
        return self.up is None and self.down is None

    @property
    def stated(self) -> bool:
        return self.round_trips is RttSource.STATED


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyEntry:
    """A strategy of the registry under a label of its own.

    Attributes:
        name: in the registry.
        label: in the report; the name when empty. Needed where one strategy takes part with several options.
        role: its part in the comparison.
        privacy: only under these; empty for all of the study's.
        options: what the registry's maker is told, sorted by name.
    """

    name: str
    label: str = ""
    role: Role = Role.RIVAL
    privacy: tuple[Privacy, ...] = ()
    options: tuple[tuple[str, OptionValue], ...] = ()

    def __post_init__(self) -> None:
        _require(bool(self.name), "a strategy has a name")
        object.__setattr__(self, "label", self.label or self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What makes a world less than ideal; the courses are those of ``presets.courses``.

    Attributes:
        heat: the device heats up and slows down.
        background: other programs come and go on it.
        cloud_load: the cloud of a lone device has quiet and busy spells.
        device_jitter, cloud_jitter: sigma of the log-normal factor of a request's passes, and of each step.
    """

    heat: bool = False
    background: bool = False
    cloud_load: bool = False
    device_jitter: float = 0.0
    cloud_jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("device_jitter", "cloud_jitter"):
            _require(0.0 <= getattr(self, name) <= 2.0, f"{name} must lie in [0, 2]")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """A study.

    Attributes:
        name, about: for the report.
        seeds: one world each.
        links: the classes, in the order of the report.
        workloads: by their shipped names.
        strategies: in the order of the report; every one meets the same worlds.
        requests, seconds: how long a world is; exactly one is given. In a crowd it is ``seconds``.
        device, cloud: presets.
        privacy: of every request, one row of cells each; empty leaves each request its own.
        deadlines: whether requests keep those of their workload.
        objective: what all are to minimise and are judged by.
        conditions: of device and cloud.
        fixed_arms: let every fixed arm that the situation has take part.
        compare: for whom the best plan of each request is found (clairvoyant regret).
        drafters: that the device has, by their names in the acceptance table; ``cloud-mtp`` is one that the cloud has.
        devices: empty for a lone device whose cloud's load comes from outside; else how many devices share a cloud,
            one row of cells each.
    """

    name: str
    seeds: tuple[int, ...]
    links: tuple[LinkEntry, ...]
    workloads: tuple[str, ...]
    strategies: tuple[StrategyEntry, ...]
    device: str
    cloud: str
    about: str = ""
    requests: int | None = None
    seconds: float | None = None
    privacy: tuple[Privacy, ...] = ()
    deadlines: bool = False
    objective: Objective = field(default_factory=Objective)
    conditions: Conditions = field(default_factory=Conditions)
    fixed_arms: bool = False
    compare: Compare = Compare.NONE
    drafters: tuple[str, ...] = ()
    devices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require(bool(self.name), "a study has a name")
        _require(1 <= len(self.seeds) <= MAX_SEEDS, f"a study has 1 to {MAX_SEEDS} seeds")
        _require(all(0 <= seed < 1 << 31 for seed in self.seeds), "seeds lie in [0, 2**31)")
        _require((self.requests is None) != (self.seconds is None), "exactly one of requests and seconds is given")
        _require(self.requests is None or 1 <= self.requests <= MAX_REQUESTS, f"requests lie in [1, {MAX_REQUESTS}]")
        _require(self.seconds is None or 0.0 < self.seconds <= MAX_SECONDS, "seconds lie in (0, 30 days]")
        _require(all(1 <= n <= MAX_DEVICES for n in self.devices), f"devices lie in [1, {MAX_DEVICES}]")
        _require(not self.devices or self.requests is None, "a crowd's length is given in seconds")
        alone = not self.devices or self.compare is Compare.NONE
        _require(alone, "compare is for a lone device: in a crowd one choice changes the world of the others")
        named: dict[str, list[object]] = {
            "seeds": list(self.seeds),
            "links": [link.name for link in self.links],
            "workloads": list(self.workloads),
            "strategies": [strategy.label for strategy in self.strategies],
            "privacy": list(self.privacy or (None,)),
        }
        for what, names in named.items():
            _require(bool(names), f"{what} is empty")
            _require(len(set(names)) == len(names), f"{what} names one twice")
        _require(len(set(self.drafters)) == len(self.drafters), "drafters names one twice")
        _require(len(set(self.devices)) == len(self.devices), "devices names a number twice")
        cells = math.prod(map(len, named.values())) * max(1, len(self.devices))
        _require(cells <= MAX_CELLS, f"a study has at most {MAX_CELLS} cells, not {cells}")

    def compares(self, strategy: StrategyEntry) -> bool:
        """Whether the best plans of this strategy's requests are found too."""
        return self.compare is Compare.ALL or (self.compare is Compare.JUDGED and strategy.role is Role.JUDGED)

    @property
    def traces(self) -> tuple[str, ...]:
        """The trace files that it needs, each once, sorted."""
        return tuple(sorted({path for link in self.links for path in (link.up, link.down) if path is not None}))

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of what it says (files of traces not included)."""
        return hashlib.sha256(dumps(self).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedStudy:
    """A study and the folder that its trace files lie in; None for a shipped study that was given none."""

    config: StudyConfig
    folder: Path | None


def parse_study(text: str, where: str) -> StudyConfig:
    """TOML to a study; fields that are left out have their defaults. InputError names file and field."""
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not TOML: {error}") from None
    return study_of(raw, where)


def study_of(raw: dict[str, Any], where: str) -> StudyConfig:
    """A study from plain values; those that are left out have their defaults."""
    options: list[tuple[tuple[str, OptionValue], ...]] = []
    for key, kind in (("links", LinkEntry), ("strategies", StrategyEntry)):
        if isinstance(raw.get(key), list):
            raw[key] = [_with_defaults(kind, item) if isinstance(item, dict) else item for item in raw[key]]
    for number, item in enumerate(raw["strategies"] if isinstance(raw.get("strategies"), list) else ()):
        if isinstance(item, dict):
            options.append(_options(item.pop("options"), f"{where}.strategies[{number}].options"))
            item["options"] = []
    for key, part in (("objective", Objective), ("conditions", Conditions)):
        if isinstance(raw.get(key), dict):
            raw[key] = _with_defaults(part, raw[key])
    config = read(StudyConfig, _with_defaults(StudyConfig, raw), where)
    strategies = zip(config.strategies, options, strict=True)
    return dataclasses.replace(
        config, strategies=tuple(dataclasses.replace(entry, options=given) for entry, given in strategies)
    )


def _options(given: object, where: str) -> tuple[tuple[str, OptionValue], ...]:
    """A table of scalars, as sorted pairs."""
    if given == []:  # the default
        return ()
    if not isinstance(given, dict) or len(given) > MAX_OPTIONS:
        raise InputError(f"{where} must be a table of at most {MAX_OPTIONS} entries")
    for name, value in given.items():
        if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(f"{where}.{name} must be a number, a string, true or false")
    return tuple(sorted(given.items()))


def _with_defaults(kind: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for entry in dataclasses.fields(kind):
        if entry.default is not dataclasses.MISSING:
            defaults[entry.name] = to_plain(entry.default)
        elif entry.default_factory is not dataclasses.MISSING:
            defaults[entry.name] = to_plain(entry.default_factory())
    return defaults | given


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InputError(otherwise)
