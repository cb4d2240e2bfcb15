"""The exact search over a grid: the cheapest chunk size and draft of every plan, and the cheapest plan of every arm"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitglm_core.plan import Arm, SplitPlan
from splitglm_partitioner.basis import basis_of
from splitglm_partitioner.constraints import Constraint, Exclusion
from splitglm_partitioner.cost import wire_bytes
from splitglm_partitioner.decision import TIE_RELATIVE
from splitglm_partitioner.decoding_rounds import rounds_of
from splitglm_partitioner.grid import Grid, Indices, column_of
from splitglm_partitioner.layer_times import Seconds
from splitglm_partitioner.pricing import Prices, Run, price
from splitglm_partitioner.profiles import LinkEstimate
from splitglm_partitioner.request import Situation


class Search:
    """Values of all plans of a grid under the request's objective and bounds.

    Attributes:
        values: of each plan with its best allowed chunk size and draft, infinite where none is allowed; ``[plans]``.
    """

    def __init__(self, grid: Grid, situation: Situation) -> None:
        self.grid, self.situation = grid, situation
        request = situation.request
        self._bounded = request.deadline_s is not None or request.energy_budget_j is not None
        self._warm = self._warm_column()
        self._prices = self._priced()
        self._further = request.expected_new_tokens - 1
        first, token = self._objective()
        self._run, least_first = _least(first)
        self._round, least_token = _least(token)
        self.values: Seconds = least_first + least_token
        if self._bounded:
            self._keep_bounds(first, token)

    def plan(self, column: int) -> SplitPlan:
        """A column with its best chunk size and draft."""
        chunk = self._prices.runs[self._run[column] if self._run is not None else 0].chunk_tokens
        choice = self._prices.rounds.choices[self._round[column] if self._round is not None else 0]
        return self.grid.plan(column, chunk, choice.drafter, choice.draft_tokens)

    def goes_on(self, column: int) -> bool:
        """Whether the open session serves the plan of ``column``."""
        if column != self._warm or self.situation.request.warm is None:
            return False
        return self.situation.request.warm.serves(self.plan(column))

    def tie_key(self, column: int) -> tuple[float, int, int, int, int]:
        """Order among equals."""
        run = int(self._run[column]) if self._run is not None else 0
        if self.goes_on(column):
            run = len(self._prices.runs) - 1
        choice = int(self._round[column]) if self._round is not None else 0
        bytes_moved = sum(wire_bytes(self._prices, run, choice, column))
        warm = 0 if self.goes_on(column) else 1
        return bytes_moved, warm, int(self.grid.s[column]), -int(self.grid.t[column]), column

    def best_by_arm(self) -> list[int | Exclusion]:
        """The column of each arm's best plan, or why it has none."""
        starts = [start for _, start, _ in self.grid.arms]
        least = np.minimum.reduceat(self.values, starts)
        bounds = least + TIE_RELATIVE * np.abs(least)
        sizes = [stop - start for _, start, stop in self.grid.arms]
        equal = (self.values <= bounds.repeat(sizes)).nonzero()[0].tolist()
        if len(equal) == len(starts) and not self._bounded:
            return list(equal)
        out: list[int | Exclusion] = []
        for (arm, start, stop), value in zip(self.grid.arms, least.tolist(), strict=True):
            if value == np.inf:
                out.append(self._forbidden(arm, start, stop))
            else:
                near = [i for i in equal if start <= i < stop]
                out.append(near[0] if len(near) == 1 else min(near, key=self.tie_key))
        return out

    def _warm_column(self) -> int | None:
        """The column that goes on in the open session, if it is a candidate."""
        request = self.situation.request
        warm = request.warm
        if warm is None or not warm.cached_tokens or warm.plan.chunk_tokens not in request.chunk_sizes:
            return None
        column = column_of(self.grid, warm.plan)
        if column is None or not warm.serves(self.grid.plan(column, warm.plan.chunk_tokens)):
            return None
        return column

    def _priced(self) -> Prices:
        x = self.situation
        request = x.request
        links: tuple[LinkEstimate | None, ...] = (x.link,)
        if self._bounded:
            links = (x.link, x.link.pessimistic() if x.link is not None else None)
        runs = [Run(chunk, 0) for chunk in request.chunk_sizes]
        if self._warm is not None and request.warm is not None:
            runs.append(Run(request.warm.plan.chunk_tokens, request.warm.cached_tokens))
        basis = basis_of(self.grid, x.device, x.cloud)
        energy = request.objective.energy > 0.0 or request.energy_budget_j is not None
        prices = price(basis, x, links, tuple(runs), rounds_of(basis, x), energy=energy)
        if self._warm is not None and request.warm is not None:
            # The open session has one chunk size and its caches; the same cut in other chunks would start anew.
            slot = request.chunk_sizes.index(request.warm.plan.chunk_tokens)
            for costs in (prices.ttft_s, prices.first_j):
                if costs is not None:
                    costs[slot, :, self._warm] = costs[-1, :, self._warm]
        return prices

    def _objective(self) -> tuple[Seconds, Seconds]:
        """Weighed prefill per chunk size, and weighed further tokens per round; ``[choices, plans]``."""
        prices, x = self._prices, self.situation
        weights, sizes = x.request.objective, len(x.request.chunk_sizes)
        first: Seconds = (weights.latency + weights.ttft) * prices.ttft_s[:sizes, 0]
        token: Seconds = (weights.latency * self._further) * prices.per_token_s[:, 0]
        if weights.energy and prices.first_j is not None and prices.token_j is not None:
            first += weights.energy * prices.first_j[:sizes, 0]
            token += (weights.energy * self._further) * prices.token_j[:, 0]
        if weights.cloud_cost and x.cloud is not None and x.cloud.price_per_layer_token is not None:
            width = (weights.cloud_cost * x.cloud.price_per_layer_token) * prices.basis.width
            first += x.request.prompt_tokens * width
            token += (self._further * prices.rounds.per_token)[:, None] * width
            if self._warm is not None and x.request.warm is not None:
                slot = x.request.chunk_sizes.index(x.request.warm.plan.chunk_tokens)
                first[slot, self._warm] -= x.request.warm.cached_tokens * width[self._warm]
        if prices.rounds.barred is not None:
            token += prices.rounds.barred
        return first, token

    def _bound_amounts(self, columns: NDArray[np.intp]) -> list[tuple[Seconds, float]]:
        """What is bounded, of every chunk size, round and column, on the pessimistic link; and its bound."""
        prices, request = self._prices, self.situation.request
        sizes, out = len(request.chunk_sizes), []
        for first, token, bound in (
            (prices.ttft_s, prices.per_token_s, request.deadline_s),
            (prices.first_j, prices.token_j, request.energy_budget_j),
        ):
            if bound is not None and first is not None and token is not None:
                total = first[:sizes, None, 1, columns] + self._further * token[None, :, 1, columns]
                out.append((total, bound))
        return out

    def _keep_bounds(self, first: Seconds, token: Seconds) -> None:
        """Replace the pairs of chunk size and round that break a bound by the best that keeps all."""
        every = np.arange(len(self.values))
        run = np.zeros_like(every) if self._run is None else self._run
        choice = np.zeros_like(every) if self._round is None else self._round
        broken = np.zeros(len(every), dtype=bool)
        prices, request = self._prices, self.situation.request
        for before, after, bound in (
            (prices.ttft_s, prices.per_token_s, request.deadline_s),
            (prices.first_j, prices.token_j, request.energy_budget_j),
        ):
            if bound is not None and before is not None and after is not None:
                broken |= before[run, 1, every] + self._further * after[choice, 1, every] > bound
        columns = broken.nonzero()[0]
        if len(columns) == 0:
            return
        values = first[:, None, columns] + token[None, :, columns]
        for total, bound in self._bound_amounts(columns):
            values[total > bound] = np.inf
        flat = values.reshape(-1, len(columns))
        best = flat.argmin(axis=0)
        self.values[columns] = flat[best, np.arange(len(columns))]
        self._run, self._round = run.copy(), choice.copy()
        self._run[columns], self._round[columns] = np.divmod(best, values.shape[1])

    def _forbidden(self, arm: Arm, start: int, stop: int) -> Exclusion:
        """Which bound no plan of the arm keeps."""
        request, columns = self.situation.request, np.arange(start, stop)
        barred = self._prices.rounds.barred
        usable = 0.0 if barred is None else barred[None, :, start:stop]
        least = [(float((total + usable).min()), bound) for total, bound in self._bound_amounts(columns)]
        if request.deadline_s is not None and least[0][0] > request.deadline_s:
            detail = f"the fastest plan may take {least[0][0]:.3g} s, the deadline is {request.deadline_s:.3g} s"
            return Exclusion(arm=arm, constraint=Constraint.DEADLINE, detail=detail)
        if request.energy_budget_j is not None and least[-1][0] > request.energy_budget_j:
            detail = f"the thriftiest plan may take {least[-1][0]:.3g} J, the budget is {request.energy_budget_j:.3g} J"
            return Exclusion(arm=arm, constraint=Constraint.ENERGY, detail=detail)
        return Exclusion(
            arm=arm, constraint=Constraint.DEADLINE, detail="no plan keeps both deadline and energy budget"
        )


def _least(values: Seconds) -> tuple[Indices | None, Seconds]:
    """The first of the near-least rows of each column, and its value; None when there is one row only."""
    if len(values) == 1:
        return None, values[0]
    least = values.min(axis=0)
    index = (values <= least + TIE_RELATIVE * np.abs(least)).argmax(axis=0)
    return index, least
