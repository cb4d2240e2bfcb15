"""The strategies by name: what makes each, where it comes from, whether it is lossy or clairvoyant."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, get_type_hints

from splitglm_core.errors import InputError
from splitglm_sims.strategies import (
    decoding,
    draft_lengths,
    dynasplit,
    edgent,
    edgeshard,
    exp3,
    fixed,
    mu_linucb,
    neurosurgeon,
    oracle,
    product,
)
from splitglm_sims.strategies.expected_lengths import ExpectedLengths
from splitglm_sims.strategies.facts import Facts
from splitglm_sims.strategies.strategy import Strategy

OptionValue: TypeAlias = bool | int | float | str
Factory: TypeAlias = Callable[..., Strategy]

_OUTSIDE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
# What every factory is called with; the rest of its parameters are options.
_GIVEN: Final = ("situation_facts", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A strategy that can be named.

    Attributes:
        name: in configurations.
        factory: called with ``(situation_facts, seed, **options)``; its keyword-only parameters are the options.
        about: one line.
        source: paper or program; ``"-"`` for the product's own and for plain yardsticks.
        lossy: its tokens may differ from what the model alone would give.
        clairvoyant: it is told the future: a bound, not a competitor.
        told_lengths: it plans for the length that answers are expected to have (``ExpectedLengths``) and not for the
            caller's bound.
    """

    name: str
    factory: Factory
    about: str
    source: str = "-"
    lossy: bool = False
    clairvoyant: bool = False
    told_lengths: bool = False


def strategy_names() -> tuple[str, ...]:
    """Every name that ``make_strategy`` knows, in the order of the table. It also takes ``package.module:factory``."""
    return tuple(_TABLE)


def registered(name: str) -> Registered:
    """The entry of ``name``; one is made up for ``package.module:factory``.

    Raises:
        InputError: no such name, with the names that there are; or it cannot be imported.
    """
    if name in _TABLE:
        return _TABLE[name]
    if not _OUTSIDE.fullmatch(name):
        known = ", ".join(_TABLE)
        raise InputError(f"there is no strategy {name!r}", f"one of {known}; or package.module:factory, your own")
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"strategy {name} cannot be imported: {error}", "check PYTHONPATH") from error
    if not callable(factory):
        raise InputError(f"strategy {name} is not a factory: it cannot be called", "name a class or a function")
    about = (inspect.getdoc(factory) or "a strategy of your own").splitlines()[0]
    lossy = bool(getattr(factory, "lossy", False))
    return Registered(name=name, factory=factory, about=about, source=module, lossy=lossy)


def options_of(name: str) -> dict[str, OptionValue]:
    """The options of a strategy with their defaults. InputError for an unknown name."""
    return {key: parameter.default for key, parameter in _options(registered(name)).items()}


def make_strategy(
    name: str, *, situation_facts: Facts, seed: int, options: Mapping[str, OptionValue] | None = None
) -> Strategy:
    """A fresh strategy for one device.

    Args:
        name: of the registry, or ``package.module:factory`` for one of your own (docs/simulation.md).
        situation_facts: what was measured beforehand.
        seed: of whatever it draws.
        options: by name; those left out keep their defaults.

    Raises:
        InputError: an unknown name or option, or an option of another type or out of range; what exists is listed.
    """
    entry = registered(name)
    known, given = _options(entry), dict(options or {})
    unknown = sorted(set(given) - set(known))
    if unknown:
        exist = ", ".join(f"{key}={parameter.default!r}" for key, parameter in known.items()) or "none"
        raise InputError(f"strategy {name} has no option {', '.join(unknown)}", f"its options are: {exist}")
    makes: object = entry.factory
    hints = get_type_hints(vars(makes).get("__init__", makes) if isinstance(makes, type) else makes)
    for key, value in given.items():
        given[key] = _converted(name, key, value, hints.get(key))
    made = entry.factory(situation_facts, seed, **given)
    return ExpectedLengths(made) if entry.told_lengths else made


def _options(entry: Registered) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(entry.factory).parameters
    if len(parameters) < len(_GIVEN):
        raise InputError(f"strategy {entry.name} must take ({', '.join(_GIVEN)}, *, options with defaults)")
    out = {key: parameter for key, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    if any(parameter.default is parameter.empty for parameter in out.values()):
        raise InputError(f"every option of strategy {entry.name} needs a default")
    return out


def _converted(name: str, key: str, value: OptionValue, wanted: object) -> OptionValue:
    """``value`` if it is of the type that the factory states; a whole number may stand for a real one."""
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a cut is a number or a word
    fits = wanted not in (bool, int, float, str) or type(value) is wanted
    if not fits:
        raise InputError(f"option {key} of strategy {name} must be {getattr(wanted, '__name__', wanted)}: {value!r}")
    return value


_TABLE: Final[dict[str, Registered]] = {
    entry.name: entry
    for entry in (
        Registered(name="splitglm", factory=product.product, about="the product: the advisor that the agent runs"),
        Registered(name="device-only", factory=fixed.device_only, about="every layer on the device"),
        Registered(name="cloud-only", factory=fixed.cloud_only, about="token ids up, tokens down"),
        Registered(
            name="cloud-drafted",
            factory=fixed.cloud_drafted,
            about="cloud-only whose cloud drafts for itself (multi-token prediction)",
            source="Speculation at a Distance, arXiv 2606.25091",
        ),
        Registered(name="fixed", factory=fixed.fixed, about="one arm, cut, codec and drafter for every request"),
        Registered(
            name="neurosurgeon",
            factory=neurosurgeon.neurosurgeon,
            about="scan of all cuts at the bandwidth last measured",
            source="Kang et al., ASPLOS 2017",
            told_lengths=True,
        ),
        Registered(
            name="edgent",
            factory=edgent.edgent,
            about="offline map of bandwidth states, Bayesian change points online",
            source="Li et al., arXiv 1910.05316; Adams and MacKay, arXiv 0710.3742",
            told_lengths=True,
        ),
        Registered(
            name="edgeshard",
            factory=edgeshard.edgeshard,
            about="dynamic programme over (layer, machine) on the profile",
            source="Zhang et al., arXiv 2405.14371",
            told_lengths=True,
        ),
        Registered(
            name="dynasplit",
            factory=dynasplit.dynasplit,
            about="offline Pareto front of latency, energy and price; online pick by deadline",
            source="May et al., arXiv 2410.23881",
            told_lengths=True,
        ),
        Registered(
            name="mu-linucb",
            factory=mu_linucb.mu_linucb,
            about="linear bandit over plans with forced sampling; memory plain, sliding or discounted",
            source="Zhang et al., WWW 2021, arXiv 2102.02638",
            told_lengths=True,
        ),
        Registered(
            name="exp3",
            factory=exp3.exp3,
            about="exponential weights over the fixed arms",
            source="Auer et al., SIAM J. Comput. 32(1), 2002",
            told_lengths=True,
        ),
        Registered(
            name="oracle",
            factory=oracle.oracle,
            about="what would turn out best, request by request",
            clairvoyant=True,
        ),
        Registered(
            name="one-token-per-trip",
            factory=decoding.one_token_per_trip,
            about="split or U-shape without drafts",
            source="the layer-split baseline of SpecEdge, arXiv 2505.17052",
            told_lengths=True,
        ),
        Registered(
            name="lookup",
            factory=decoding.lookup,
            about="U-shape with n-gram drafts",
            source="coder903/split-inference at 4601c5f",
            told_lengths=True,
        ),
        Registered(
            name="hat-like",
            factory=decoding.hat_like,
            about="U-shape whose front drafts through an adapter",
            source="HAT, arXiv 2503.18989",
            told_lengths=True,
        ),
        Registered(
            name="draft-verify",
            factory=decoding.draft_verify,
            about="a small model on the device drafts, the cloud verifies ids",
            source="DSD, arXiv 2511.21669; arXiv 2606.25091",
            told_lengths=True,
        ),
        Registered(
            name="draft-lengths",
            factory=draft_lengths.draft_lengths,
            about="draft length learnt by upper confidence bounds per delay class",
            source="after UCB-SpecStop, arXiv 2606.20591",
            told_lengths=True,
        ),
    )
}
