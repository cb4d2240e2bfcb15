"""What a decision takes from the requests before it, as frozen values; ``steering`` says how they are used."""

from __future__ import annotations

from dataclasses import dataclass

from splitglm_core.plan import Arm
from splitglm_partitioner.bounds import check_count, check_number, check_seconds

MAX_BUDGET = 1e18


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringSettings:
    """See ``steering``. ``margin = 0`` and ``explore_share = 0`` switch both off.

    Attributes:
        margin: a challenger this much cheaper, as a share, replaces a habit at once.
        patience: a lesser advantage must be there so many times in a row.
        explore_share: share of all cost that explorations may add.
        explore_within: arms priced further above the best, as a share of it, are not tried: no error is that large.
        stale_s: an arm that ran more recently is not tried.
    """

    margin: float = 0.04
    patience: int = 2
    explore_share: float = 0.005
    explore_within: float = 0.5
    stale_s: float = 120.0

    def __post_init__(self) -> None:
        check_number("margin", self.margin, 0.0, 0.5)
        check_count("patience", self.patience, 1, 100)
        check_number("explore_share", self.explore_share, 0.0, 0.2)
        check_number("explore_within", self.explore_within, 0.0, 10.0)
        check_seconds("stale_s", self.stale_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Habit:
    """Of one kind of request: the arm that served it last, and who was cheaper how many times in a row since."""

    arm: Arm
    challenger: Arm | None = None
    streak: int = 0

    def __post_init__(self) -> None:
        check_count("streak", self.streak, 0, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """All that steering adds to the inputs of a decision.

    Attributes:
        habit: None for a kind of request that is new.
        budget: what an exploration may cost beyond the best price, in units of the objective.
        stale: arms that have not run of late, the longest ago first.
    """

    settings: SteeringSettings
    habit: Habit | None = None
    budget: float = 0.0
    stale: tuple[Arm, ...] = ()

    def __post_init__(self) -> None:
        check_number("exploration budget", self.budget, -MAX_BUDGET, MAX_BUDGET)
