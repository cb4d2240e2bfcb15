"""How drafts fare in each genre, from measured tokens per round trip to the statistics that the policy takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from importlib import resources
from typing import Final

from splitglm_core.errors import InputError
from splitglm_core.plan import Precision
from splitglm_partitioner.bounds import check_number, check_seconds
from splitglm_partitioner.drafts import MAX_DRAFT_TOKENS, DraftStatistics
from splitglm_partitioner.profiles import DeviceProfile, PrecisionProfile
from splitglm_sims.presets.shelf import Shelf

_CONTEXT_TOKENS: Final = 512  # at which the device's decode time is charged to a draft


class Work(Enum):
    """What a drafter makes the device do."""

    LOOKUP = "lookup"
    EXIT = "exit"  # a part of the front layers, then the head
    MODEL = "model"  # all layers and the head, at a precision of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafter:
    """A drafter, independent of device and genre.

    Attributes:
        name: as in plans.
        about: one line for people.
        work: decides which of the next are stated.
        lookup_s_per_token: seconds.
        depth: of an exit, as a share of the model's layers.
        precision: of a whole model.
    """

    name: str
    about: str
    work: Work
    lookup_s_per_token: float | None = None
    depth: float | None = None
    precision: Precision | None = None

    def __post_init__(self) -> None:
        stated = {Work.LOOKUP: self.lookup_s_per_token, Work.EXIT: self.depth, Work.MODEL: self.precision}
        if any((value is not None) != (work is self.work) for work, value in stated.items()):
            raise InputError(f"drafter {self.name!r} states exactly what a drafter by {self.work.value} needs")
        if self.lookup_s_per_token is not None:
            check_seconds("lookup_s_per_token", self.lookup_s_per_token)
        if self.depth is not None:
            check_number("depth", self.depth, 0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Tokens of one round trip, accepted ones and one more, for 1, 2, ... drafted tokens."""

    drafter: str
    genre: str
    tokens_per_round: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.tokens_per_round) <= MAX_DRAFT_TOKENS:
            raise InputError(f"tokens_per_round has 1 to {MAX_DRAFT_TOKENS} entries")
        for value in self.tokens_per_round:
            check_number("tokens_per_round", value, 1.0, MAX_DRAFT_TOKENS + 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssumedGenre:
    """A genre that nobody measured: the mean of others, drafter by drafter."""

    genre: str
    mean_of: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceTable:
    """All that is known of drafts.

    Attributes:
        source: how it was measured.
        drafters: by name.
        measured: one entry for a drafter and a genre.
        assumed: genres without a measurement.
    """

    source: str
    drafters: tuple[Drafter, ...]
    measured: tuple[Measured, ...]
    assumed: tuple[AssumedGenre, ...] = ()

    def __post_init__(self) -> None:
        names = [drafter.name for drafter in self.drafters]
        pairs = [(entry.drafter, entry.genre) for entry in self.measured]
        if len(set(names)) != len(names) or len(set(pairs)) != len(pairs):
            raise InputError("a table lists each drafter once, and each drafter in a genre once")
        for entry in self.measured:
            if entry.drafter not in names:
                raise InputError(f"drafter {entry.drafter!r} is measured and not described")
        genres = {entry.genre for entry in self.measured}
        for item in self.assumed:
            if item.genre in genres or not item.mean_of or not genres.issuperset(item.mean_of):
                raise InputError(f"genre {item.genre!r} is the mean of measured genres and not measured itself")

    @property
    def genres(self) -> tuple[str, ...]:
        return tuple(sorted({entry.genre for entry in self.measured} | {item.genre for item in self.assumed}))

    def survival(self, drafter: str, genre: str) -> tuple[float, ...] | None:
        """Chances that the first 1, 2, ... drafted tokens are kept; None where nothing is known."""
        parts = next((item.mean_of for item in self.assumed if item.genre == genre), (genre,))
        rows = [e.tokens_per_round for part in parts for e in self.measured if (e.drafter, e.genre) == (drafter, part)]
        if len(rows) != len(parts):
            return None
        return survival_of([sum(column) / len(rows) for column in zip(*rows, strict=False)])

    def drafts(
        self, device: DeviceProfile, names: Collection[str] | None = None
    ) -> dict[str, tuple[DraftStatistics, ...]]:
        """What ``device`` can draft with, by genre; a drafter whose precision it never measured is left out.

        Args:
            names: of the drafters it has; None for all.

        Raises:
            InputError: a name that the table does not know.
        """
        known = {drafter.name: drafter for drafter in self.drafters}
        wanted = list(known) if names is None else list(names)
        for name in wanted:
            if name not in known:
                raise InputError(f"there is no drafter {name!r}", f"use some of {', '.join(known)}")
        made: dict[str, tuple[DraftStatistics, ...]] = {}
        for genre in self.genres:
            rows = []
            for name in wanted:
                survival, cost = self.survival(name, genre), _on_device(known[name], device)
                if survival is not None and cost is not None:
                    rows.append(replace(cost, survival=survival))
            made[genre] = tuple(rows)
        return made


def survival_of(tokens_per_round: Sequence[float]) -> tuple[float, ...]:
    """Prefix chances from tokens per round trip, by differences.

    One more drafted token adds the chance that the whole prefix is kept. Rounded or finite-sample figures can rise
    from one to the next, or pass 1; the nearest sequence in the sense of least squares that never rises takes their
    place (pool adjacent violators, Ayer et al. 1955), cut at 1.
    """
    blocks: list[tuple[float, int]] = []
    last = 1.0
    for tokens in tokens_per_round:
        mean, count = tokens - last, 1
        last = tokens
        while blocks and blocks[-1][0] < mean:
            other, others = blocks.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        blocks.append((mean, count))
    return tuple(min(1.0, max(0.0, mean)) for mean, count in blocks for _ in range(count))


@cache
def acceptance_table() -> AcceptanceTable:
    """The table that ships with the package."""
    text = resources.files("splitglm_sims.workloads").joinpath("acceptance.toml").read_text("utf-8")
    return parse_acceptance(text, "acceptance.toml")


def parse_acceptance(text: str, where: str) -> AcceptanceTable:
    """TOML text to a table; InputError names ``where`` and the key."""
    return Shelf(kind=AcceptanceTable, package=__package__, folder="", word="acceptance table").parse(text, where)


def _on_device(drafter: Drafter, device: DeviceProfile) -> DraftStatistics | None:
    """The drafter with its cost here and no chance of success yet."""
    if drafter.work is Work.LOOKUP:
        return DraftStatistics(name=drafter.name, s_per_token=drafter.lookup_s_per_token or 0.0, survival=(0.0,))
    if drafter.work is Work.EXIT:
        layers = min(device.layers, max(1, round((drafter.depth or 0.0) * device.layers)))
        s_per_token = _step_s(device.active, layers)
        return DraftStatistics(
            name=drafter.name, s_per_token=s_per_token, survival=(0.0,), front_layers=layers, shares_front=True
        )
    for entry in device.precisions:
        if entry.precision is drafter.precision:
            return DraftStatistics(name=drafter.name, s_per_token=_step_s(entry, device.layers), survival=(0.0,))
    return None


def _step_s(entry: PrecisionProfile, layers: int) -> float:
    return entry.embed_s + float(entry.times.decode_cumulative(_CONTEXT_TOKENS)[layers]) + entry.head_s
