"""Virtual service: shares follow weights, absence earns nothing, memory is bounded."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from splitglm_cloud.engine.fairness import VirtualService

WEIGHTS = st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=5)
COSTS = st.lists(st.integers(1, 60), min_size=30, max_size=120)


class Shop:
    """One place a turn, given to whoever has the smallest counter; all others are left waiting."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.service = VirtualService()
        self.weights = weights
        self.served = dict.fromkeys(weights, 0.0)  # divided by weight
        self.largest = 0.0

    def turn(self, present: list[str], cost: int) -> str:
        counters = {tenant: self.service.of(tenant) for tenant in present}
        chosen = min(present, key=lambda tenant: (counters[tenant], present.index(tenant)))
        amount = cost / self.weights[chosen]
        self.largest = max(self.largest, amount)
        self.service.charge(chosen, amount)
        self.service.advance([self.service.of(tenant) for tenant in present], present)
        self.served[chosen] += amount
        return chosen


@given(weights=WEIGHTS, costs=COSTS)
@settings(max_examples=60, deadline=None)
def test_tenants_that_always_wait_get_service_by_weight(weights: list[float], costs: list[int]) -> None:
    """Over any stretch of turns no two differ by more than twice the largest charge (theorem 4.4 of the paper)."""
    shop = Shop({f"tenant {index}": weight for index, weight in enumerate(weights)})
    present = list(shop.weights)
    history = [dict(shop.served)]
    for cost in costs:
        shop.turn(present, cost)
        history.append(dict(shop.served))
    for begin in history[::7]:
        gained = [shop.served[tenant] - begin[tenant] for tenant in present]
        assert max(gained) - min(gained) <= 2 * shop.largest + 1e-6


@given(weights=WEIGHTS, costs=COSTS, away=st.lists(st.booleans(), min_size=30, max_size=120))
@settings(max_examples=60, deadline=None)
def test_whoever_leaves_and_returns_gains_nothing(weights: list[float], costs: list[int], away: list[bool]) -> None:
    """Tenant 0 comes and goes; while it is there, it gets no more than the others do in those turns."""
    shop = Shop({f"tenant {index}": weight for index, weight in enumerate(weights)})
    visitor, *residents = shop.weights
    came: dict[str, float] = dict(shop.served)
    was_there = True
    for cost, gone in zip(costs, away, strict=False):
        if was_there is gone:  # it leaves or returns now
            was_there, came = not gone, dict(shop.served)
        shop.turn(residents if gone else [visitor, *residents], cost)
        if not gone:
            gained = {tenant: shop.served[tenant] - came[tenant] for tenant in shop.weights}
            assert gained[visitor] <= min(gained[tenant] for tenant in residents) + 2 * shop.largest + 1e-6


def test_a_debt_is_still_known_after_a_short_absence() -> None:
    shop = Shop({"a": 1.0, "b": 1.0})
    assert [shop.turn(["a", "b"], cost) for cost in (100, 10)] == ["a", "b"]
    assert shop.turn(["b"], 10) == "b"  # without "a", which owes 80 still
    assert [shop.turn(["a", "b"], 10) for _ in range(9)].count("a") == 1


def test_a_newcomer_starts_beside_those_who_wait_and_not_at_zero() -> None:
    shop = Shop({"a": 1.0, "b": 1.0, "new": 1.0})
    for _ in range(1000):
        shop.turn(["a", "b"], 10)
    assert [shop.turn(["a", "b", "new"], 10) for _ in range(30)].count("new") in (9, 10, 11)


def test_asking_for_little_saves_up_no_more_than_one_charge() -> None:
    service = VirtualService()
    service.charge("modest", 1.0)
    for _ in range(1000):
        service.charge("greedy", 50.0)
        service.advance([service.of("greedy")], ["modest", "greedy"])
    assert service.level == 50_000
    assert service.of("modest") == service.level - 50


def test_a_tenant_that_went_away_is_forgotten_once_its_debt_is_paid() -> None:
    service = VirtualService()
    service.charge("gone", 100.0)
    for _ in range(9):
        service.charge("here", 10.0)
        service.advance([service.of("here")], ["here"])
    assert len(service) == 2 and service.of("gone") == 100.0
    service.charge("here", 10.0)
    service.advance([service.of("here")], ["here"])
    assert len(service) == 1 and service.of("gone") == service.level == 100.0


def test_a_crowd_of_passing_tenants_is_forgotten_without_gain() -> None:
    service = VirtualService(max_tenants=64)
    for index in range(10_000):
        before = service.of(f"passing {index}")
        service.charge(f"passing {index}", 1.0 + index % 5)
        assert len(service) <= 64
        assert service.of(f"passing {index}") >= before + 1.0
    assert all(service.of(f"passing {index}") >= 1.0 + index % 5 for index in range(10_000))


def test_the_level_never_falls() -> None:
    service = VirtualService()
    service.advance([30.0], [])
    service.advance([10.0], [])
    service.advance([], [])
    assert service.level == service.of("anybody") == 30.0
