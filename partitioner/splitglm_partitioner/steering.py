"""What the policy remembers between requests: hysteresis, and exploration that cannot cost more than its budget.

The search prices every plan anew for each request, so estimates that waver would make it waver too.

**Hysteresis: degrade fast, upgrade slowly.** Requests of one kind (privacy, sizes within a factor of two, open session
or not) have a habit: the arm that served the last of them. To leave the cloud for the device one cheaper price is
enough: link or cloud has got worse, and every further reply would pay for it. To go the other way, or to another
cloud arm, the challenger must be cheaper by ``margin``, or cheaper at all ``patience`` times in a row. So a habit is
never dearer than ``1 / (1 - margin)`` times the best price, and never for ``patience`` requests of its kind.

**Exploration.** An arm that has not run for ``stale_s`` may have become better than its price says. It is tried when
the price of trying is in the budget: ``explore_share`` of the value of all replies so far, less what explorations cost
beyond the best price, counted after they ran. By construction their part of the regret stays below ``explore_share``
of all cost plus the overshoot of the last one; the rest of the regret is error of prediction, which observations of the
link, the device and the cloud reduce whichever arm ran, because the arms share those terms. (The budgeted form of the
forced sampling in muLinUCB, arXiv 2102.02638, where an arm that is never chosen is never learnt.)
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from splitglm_core.plan import Arm
from splitglm_partitioner.guidance import MAX_BUDGET, Guidance, Habit, SteeringSettings
from splitglm_partitioner.policy import TIE_RELATIVE, Choice, Decision
from splitglm_partitioner.request import Fixed, Request

MAX_KINDS = 256
Kind = tuple[str, int, int, bool]


def steer(decision: Decision, guidance: Guidance) -> Decision:
    """Let habit and budget overrule the cheapest price; ``why`` gains ``steering=`` and what was done."""
    cheapest = decision.chosen
    explored = _explore(decision, guidance)
    if explored is not None:
        return _take(decision, explored, guidance, "explored")
    kept = _kept(decision, guidance)
    if kept is not None:
        return _take(decision, kept, guidance, "kept")
    switched = guidance.habit is not None and guidance.habit.arm is not cheapest.plan.arm
    return _take(decision, cheapest, guidance, "switched" if switched else "cheapest")


def habit_after(decision: Decision, guidance: Guidance) -> Habit:
    """The habit that a steered decision leaves behind."""
    if _said(decision, "explored") and guidance.habit is not None:
        return guidance.habit
    arm = decision.plan.arm
    if not _said(decision, "kept"):
        return Habit(arm=arm)
    before, challenger = guidance.habit, decision.runners_up[0].plan.arm
    again = before is not None and before.challenger is challenger
    return Habit(arm=arm, challenger=challenger, streak=before.streak + 1 if again and before is not None else 1)


def _said(decision: Decision, word: str) -> bool:
    return f";steering={word}" in decision.why


def _kept(decision: Decision, guidance: Guidance) -> Choice | None:
    """The habit's plan, when it should go on although another is cheaper."""
    habit, settings, best = guidance.habit, guidance.settings, decision.chosen
    if habit is None or habit.arm is best.plan.arm or best.plan.arm is Arm.DEVICE:
        return None
    incumbent = next((c for c in decision.runners_up if c.plan.arm is habit.arm), None)
    if incumbent is None or best.value < (1.0 - settings.margin) * incumbent.value:
        return None
    streak = habit.streak if habit.challenger is best.plan.arm else 0
    return incumbent if streak + 1 < settings.patience else None


def _explore(decision: Decision, guidance: Guidance) -> Choice | None:
    """The plan of the arm that has waited longest, when trying it is affordable."""
    request = decision.situation.request
    if request.fixed != Fixed() or request.deadline_s is not None or request.warm is not None:
        return None
    others = {choice.plan.arm: choice for choice in decision.runners_up}
    for arm in guidance.stale:
        choice = others.get(arm)
        if choice is None:
            continue
        best = decision.chosen.value
        most = min(guidance.budget, guidance.settings.explore_within * best)
        if TIE_RELATIVE * best < choice.value - best <= most:
            return choice
    return None


def _take(decision: Decision, choice: Choice, guidance: Guidance, word: str) -> Decision:
    why = f"{decision.why};steering={word}"
    if choice is decision.chosen:
        return replace(decision, why=why, guidance=guidance)
    rest = [decision.chosen, *(other for other in decision.runners_up if other is not choice)]
    return replace(decision, chosen=choice, runners_up=tuple(rest), why=why, guidance=guidance)


class Steering:
    """The memory itself. The caller brings the time, which never goes back."""

    def __init__(self, settings: SteeringSettings | None = None) -> None:
        self._settings = settings or SteeringSettings()
        self._habits: OrderedDict[Kind, Habit] = OrderedDict()
        self._budget = 0.0
        self._ran_s: dict[Arm, float] = {}
        self._since_s: float | None = None

    def guidance(self, request: Request, now_s: float) -> Guidance:
        """What is remembered that bears on ``request``."""
        if self._since_s is None:
            self._since_s = now_s
        settings, since_s = self._settings, self._since_s
        last_s = {arm: self._ran_s.get(arm, since_s) for arm in Arm}
        stale = sorted((arm for arm in Arm if now_s - last_s[arm] > settings.stale_s), key=lambda arm: last_s[arm])
        habit = self._habits.get(kind_of(request))
        return Guidance(settings=settings, habit=habit, budget=self._budget, stale=tuple(stale))

    def decided(self, decision: Decision, now_s: float) -> None:
        """The reply is going to run as decided."""
        if decision.guidance is None:
            return
        kind = kind_of(decision.situation.request)
        self._habits[kind] = habit_after(decision, decision.guidance)
        self._habits.move_to_end(kind)
        if len(self._habits) > MAX_KINDS:
            self._habits.popitem(last=False)
        self._ran_s[decision.plan.arm] = now_s

    def ended(self, decision: Decision, value: float, new_tokens: int) -> None:
        """The reply came to ``value`` in units of the objective, which feeds the budget. An exploration is charged with
        what it cost beyond the best plan's price for as many tokens.
        """
        self._budget += self._settings.explore_share * value
        if _said(decision, "explored") and decision.runners_up:
            self._budget -= max(0.0, value - _price(decision.runners_up[0], new_tokens))
        self._budget = min(max(self._budget, -MAX_BUDGET), MAX_BUDGET)  # prices and weights are whatever others state


def _price(choice: Choice, new_tokens: int) -> float:
    """The value of ``choice`` for another length of the reply than expected: it goes with its seconds."""
    cost = choice.breakdown
    seconds = cost.ttft_s + (new_tokens - 1) * cost.per_token_s
    return choice.value * seconds / cost.total_s if cost.total_s > 0.0 else choice.value


def kind_of(request: Request) -> Kind:
    """Requests of one kind are alike enough to share a habit."""
    fresh = request.prompt_tokens - (request.warm.cached_tokens if request.warm is not None else 0)
    sizes = fresh.bit_length(), request.expected_new_tokens.bit_length()
    return request.privacy.value, *sizes, request.warm is not None
