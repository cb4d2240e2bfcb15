"""Virtual service: which tenant has had least in proportion to its weight. Pure.

After the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): whoever has
the smallest counter is served next and is charged what the service costs, divided by its weight. Three things differ,
because a sweep serves many at once and a session has one work at a time:

- Service is charged only while somebody is left waiting; what nobody else wanted is free. Otherwise an hour alone on
  the machine would have to be paid back to the first newcomer.
- The *level* takes the place of the paper's minimum over the active tenants: the smallest counter of those who were
  left waiting, never falling. Whoever is not known starts there.
- A tenant may lag behind the level by at most the largest single charge. It keeps the credit that its weight earns it
  between two works, and cannot save up credit while it asks for little.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

MAX_TENANTS = 4096
"""Counters kept at once. Beyond, those nearest to the level are forgotten and the level rises to them: nobody gains."""


class VirtualService:
    """Counters of tenants that compete for one kind of place. Unit: row-layers divided by weight."""

    def __init__(self, *, max_tenants: int = MAX_TENANTS) -> None:
        self._max_tenants = max_tenants
        self._counters: dict[str, float] = {}
        self.level = 0.0
        self.largest_charge = 0.0

    def __len__(self) -> int:
        return len(self._counters)

    def of(self, tenant: str) -> float:
        """The tenant's counter: the smallest is served next."""
        return self._counters.get(tenant, self.level)

    def charge(self, tenant: str, amount: float) -> None:
        """Book ``amount`` = rows x layers / weight."""
        self.largest_charge = max(self.largest_charge, amount)
        self._counters[tenant] = self.of(tenant) + amount
        if len(self._counters) > self._max_tenants:
            self._forget_half()

    def advance(self, left_waiting: Iterable[float], present: Collection[str]) -> None:
        """A sweep is over: the counters of those whom it left waiting, and the tenants that take part in the next one.

        A tenant that takes no part keeps what it owes (a counter above the level) and loses what it had saved.
        """
        self.level = max(self.level, min(left_waiting, default=self.level))
        floor = self.level - self.largest_charge
        for tenant, counter in list(self._counters.items()):
            if counter <= self.level and tenant not in present:
                del self._counters[tenant]
            elif counter < floor:
                self._counters[tenant] = floor

    def _forget_half(self) -> None:
        ordered = sorted(self._counters.items(), key=lambda item: item[1])
        forgotten = len(ordered) - self._max_tenants // 2
        self.level = max(self.level, ordered[forgotten - 1][1])
        self._counters = dict(ordered[forgotten:])
