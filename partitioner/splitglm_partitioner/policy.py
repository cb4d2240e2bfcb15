"""The choice of a plan for one request: a pure function of what was measured and what was asked.

All allowed plans are priced and the cheapest by the request's objective wins. For a transformer the price is
near-linear in the cut (every layer emits the same width), so the winner tends to be an end of the allowed range;
``why`` says which end and who set it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from splitglm_core.errors import InputError, NoFeasiblePlan
from splitglm_core.plan import Arm, SplitPlan
from splitglm_core.shapes import ModelShape
from splitglm_partitioner import typed_json
from splitglm_partitioner.arms import Candidates, Constraint, Exclusion, enumerate_arms
from splitglm_partitioner.breakdown import Breakdown
from splitglm_partitioner.cost import Prices, price
from splitglm_partitioner.grid import Grid, column_of, grid_of_blocks, grid_of_plan
from splitglm_partitioner.guidance import Guidance
from splitglm_partitioner.layer_times import Seconds
from splitglm_partitioner.profiles import CloudProfile, DeviceProfile, LinkEstimate
from splitglm_partitioner.request import Request, Situation

LOG_VERSION = 1
# Plans whose objectives differ by less are a tie: the difference is rounding, not prediction.
TIE_RELATIVE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The best plan of one arm, its predicted cost and its objective value (lower is better)."""

    plan: SplitPlan
    breakdown: Breakdown
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was chosen and why.

    Attributes:
        situation: all inputs.
        chosen: the plan to run.
        runners_up: the best plan of every other arm allowed, best first.
        excluded: the arms that are not allowed, each with its reason.
        why: machine-readable: ``key=value`` pairs joined by ``;``. Keys: ``arm``; ``cut``, the end of the allowed
            range of ``s`` that was chosen (``low``, ``high``, ``interior``, ``only``); ``limited-by``, the constraints
            that narrowed this arm; ``warm``, whether an open session goes on; ``next`` and ``margin``, the best other
            arm and how much dearer it is; after ``steering.steer`` also ``steering``.
        guidance: what ``steering.steer`` took from earlier requests; None when the cheapest price decided alone.
    """

    situation: Situation
    chosen: Choice
    runners_up: tuple[Choice, ...]
    excluded: tuple[Exclusion, ...]
    why: str
    guidance: Guidance | None = None

    @property
    def plan(self) -> SplitPlan:
        return self.chosen.plan

    @property
    def breakdown(self) -> Breakdown:
        return self.chosen.breakdown

    @property
    def value(self) -> float:
        return self.chosen.value

    @property
    def inputs_digest(self) -> str:
        """SHA-256 of the canonical JSON of all inputs, in hex."""
        return _digest(typed_json.dumps(self.situation))

    def log_line(self) -> str:
        """One line of JSON from which ``replay`` recomputes this decision. It holds sizes and times, never text."""
        inputs = typed_json.to_plain(self.situation)
        line = {
            "version": LOG_VERSION,
            "digest": self.inputs_digest,
            "plan": typed_json.to_plain(self.plan),
            "value": self.value,
            "why": self.why,
            "inputs": inputs,
        }
        return typed_json.dumps(line)


def choose(
    request: Request,
    model: ModelShape,
    device: DeviceProfile,
    link: LinkEstimate | None,
    cloud: CloudProfile | None,
) -> Decision:
    """Choose the plan of lowest objective value among all allowed ones.

    Ties go to fewer bytes on the wire, then to an open session, then to the smaller ``s``, then to the larger ``t``,
    then to the codec that the request names first.

    Args:
        link, cloud: None when no cloud is configured or reachable.

    Raises:
        NoFeasiblePlan: nothing is allowed; the message names each arm's constraint, the hint what to relax.
        PromptTooLong: prompt and answer exceed the model's positions.
        InputError: profiles of another model, or a fixed cut that the model does not have.
    """
    return decide(Situation(request=request, model=model, device=device, link=link, cloud=cloud))


def decide(situation: Situation) -> Decision:
    """``choose`` for inputs already bundled."""
    request = situation.request
    candidates = enumerate_arms(situation)
    if not candidates.blocks:
        raise _infeasible(candidates.exclusions)
    grid = grid_of_blocks(situation.model.layers, situation.model.hidden, candidates.blocks, candidates.codecs)
    pricing = _Pricing(grid, situation)
    values = pricing.values()
    excluded = list(candidates.exclusions)
    promised = None
    if request.deadline_s is not None:
        promised = pricing.promised_s()
        values[promised > request.deadline_s] = np.inf
    choices: list[tuple[int, Choice]] = []
    for arm, start, stop in grid.arms:
        if promised is not None and not np.isfinite(values[start:stop]).any():
            excluded.append(_late(arm, float(promised[start:stop].min()), request))
            continue
        index = pricing.best_of(values, start, stop)
        choices.append((index, pricing.choice(index, float(values[index]))))
    if not choices:
        raise _infeasible(tuple(excluded))
    order = _ranked(choices, pricing)
    winner, chosen = order[0]
    others = tuple(choice for _, choice in order[1:])
    why = _why(pricing, winner, chosen, others, candidates)
    return Decision(situation=situation, chosen=chosen, runners_up=others, excluded=tuple(excluded), why=why)


def replay(line: str) -> Decision:
    """Recompute the decision that ``Decision.log_line`` recorded.

    Raises:
        InputError: the line is malformed, of another version, or its inputs do not have the recorded digest.
        NoFeasiblePlan: the recorded inputs allow no plan.
    """
    plain = typed_json.parse(line, "decision line")
    if not isinstance(plain, dict) or plain.keys() != {"version", "digest", "plan", "value", "why", "inputs"}:
        raise InputError("this is not a decision line", "use a line that Decision.log_line() wrote")
    if plain["version"] != LOG_VERSION:
        raise InputError(f"decision line of version {plain['version']!r}, not {LOG_VERSION}")
    situation = typed_json.read(Situation, plain["inputs"], "inputs")
    if plain["digest"] != _digest(typed_json.dumps(situation)):
        raise InputError("the inputs of the decision line do not have the recorded digest")
    return decide(situation)


class _Pricing:
    """Prices of a grid, with the plan that continues an open session priced apart (it has fewer tokens to run)."""

    def __init__(self, grid: Grid, situation: Situation) -> None:
        self.grid, self.situation = grid, situation
        warm = situation.request.warm
        self.warm_index = None
        if warm is not None and warm.cached_tokens:
            column = column_of(grid, warm.plan)
            if column is not None and warm.serves(grid.plan(column, situation.request.chunk_tokens)):
                self.warm_index = column
        self.cold = self._price(situation.link)
        self.warm = self._price_warm(situation.link)

    def _price(self, link: LinkEstimate | None) -> Prices:
        chunk = self.situation.request.chunk_tokens
        return price(self.grid, self.situation, link, chunk_tokens=chunk, cached_tokens=0)

    def _price_warm(self, link: LinkEstimate | None) -> Prices | None:
        request = self.situation.request
        if self.warm_index is None or request.warm is None:
            return None
        plan = self.grid.plan(self.warm_index, request.chunk_tokens)
        return price(
            grid_of_plan(plan, self.situation.model.hidden),
            self.situation,
            link,
            chunk_tokens=request.chunk_tokens,
            cached_tokens=request.warm.cached_tokens,
        )

    def values(self) -> Seconds:
        """Objective value of every plan."""
        out = self._objective(self.cold)
        if self.warm is not None:
            out[self.warm_index] = self._objective(self.warm)[0]
        return out

    def _objective(self, prices: Prices) -> Seconds:
        weights, cloud = self.situation.request.objective, self.situation.cloud
        out: Seconds = weights.latency * prices.total_s
        if weights.ttft:
            out += weights.ttft * prices.ttft_s
        if weights.cloud_cost and cloud is not None and cloud.price_per_layer_token is not None:
            unit = weights.cloud_cost * cloud.price_per_layer_token
            out += unit * prices.tokens_run * (self.grid.t - self.grid.s if prices is self.cold else _width(prices))
        return out

    def promised_s(self) -> Seconds:
        """Whole-request seconds of every plan on the pessimistic link."""
        link = self.situation.link.pessimistic() if self.situation.link is not None else None
        out: Seconds = self._price(link).total_s
        warm = self._price_warm(link)
        if warm is not None:
            out[self.warm_index] = warm.total_s[0]
        return out

    def tie_key(self, index: int) -> tuple[int, int, int, int, int]:
        """Order among equals."""
        up, down = self._prices(index)[0].wire_bytes(self._prices(index)[1])
        warm = 0 if index == self.warm_index else 1
        return up + down, warm, int(self.grid.s[index]), -int(self.grid.t[index]), index

    def best_of(self, values: Seconds, start: int, stop: int) -> int:
        """Column of the best plan within ``[start, stop)``."""
        part = values[start:stop]
        first = int(part.argmin())
        ties = (part <= _tie_bound(float(part[first]))).nonzero()[0]
        if len(ties) == 1:
            return start + first
        return min((start + int(i) for i in ties), key=self.tie_key)

    def choice(self, index: int, value: float) -> Choice:
        """Column ``index`` in full."""
        prices, column = self._prices(index)
        plan = self.grid.plan(index, self.situation.request.chunk_tokens)
        return Choice(plan=plan, breakdown=prices.breakdown(column), value=value)

    def _prices(self, index: int) -> tuple[Prices, int]:
        return (self.warm, 0) if self.warm is not None and index == self.warm_index else (self.cold, index)


def _width(prices: Prices) -> Seconds:
    return (prices.grid.t - prices.grid.s).astype(np.float64)


def _tie_bound(value: float) -> float:
    return value + TIE_RELATIVE * abs(value)


def _ranked(choices: list[tuple[int, Choice]], pricing: _Pricing) -> list[tuple[int, Choice]]:
    """Best first: by value, and the winner's near-equals by the tie rule."""
    order = sorted(choices, key=lambda pair: pair[1].value)
    bound = _tie_bound(order[0][1].value)
    equals = [pair for pair in order if pair[1].value <= bound]
    if len(equals) == 1:
        return order
    return sorted(equals, key=lambda pair: pricing.tie_key(pair[0])) + order[len(equals) :]


def _why(pricing: _Pricing, winner: int, chosen: Choice, others: tuple[Choice, ...], candidates: Candidates) -> str:
    arm, s, t = chosen.plan.arm, chosen.plan.s, chosen.plan.t
    block = next(b for b in candidates.blocks if b.arm is arm and b.t == t)
    if block.s_stop - block.s_start == 1:
        cut = "only"
    else:
        cut = "low" if s == block.s_start else "high" if s == block.s_stop - 1 else "interior"
    limits = ",".join(constraint.value for narrowed, constraint in candidates.narrowed if narrowed is arm)
    parts = [f"arm={arm.value}", f"cut={cut}", f"limited-by={limits or 'none'}"]
    parts.append(f"warm={int(winner == pricing.warm_index)}")
    if others:
        parts.append(f"next={others[0].plan.arm.value}")
        parts.append(f"margin={others[0].value - chosen.value:.6g}")
    return ";".join(parts)


def _late(arm: Arm, fastest_s: float, request: Request) -> Exclusion:
    detail = f"the fastest plan may take {fastest_s:.3g} s, the deadline is {request.deadline_s:.3g} s"
    return Exclusion(arm=arm, constraint=Constraint.DEADLINE, detail=detail)


def _infeasible(excluded: tuple[Exclusion, ...]) -> NoFeasiblePlan:
    reasons = "; ".join(f"{e.arm.value}: {e.detail} ({e.constraint.value})" for e in excluded)
    remedies = dict.fromkeys(e.constraint.remedy for e in excluded)
    return NoFeasiblePlan(f"no plan satisfies the request. {reasons}", ", or ".join(remedies))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
