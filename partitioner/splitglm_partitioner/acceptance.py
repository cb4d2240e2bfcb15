"""How many drafted tokens the target keeps, per drafter and genre, learnt from every round.

A round that proposed ``k`` tokens and had ``a`` kept is evidence for the first ``min(a + 1, k)`` positions only: the
first ``a`` were kept, position ``a + 1``, if proposed, was not, and what would have followed was never judged. That is
censoring, so survival is the product-limit estimate (Kaplan and Meier 1958): the product of each position's chance
given that all before it were kept. A rejected prefix thereby counts against every longer one, a short draft says
nothing on longer ones, and no choice of draft lengths biases the result or makes it rise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from splitglm_core.errors import InputError
from splitglm_partitioner.drafts import DraftStatistics
from splitglm_partitioner.observations import DraftRound

# The shipped statistics weigh as much as this many rounds that reached a position.
PRIOR_ROUNDS = 8.0
# Weight of a round after each further one that reached the same position: about 100 rounds, some replies, count. What
# is not seen is not forgotten.
DISCOUNT = 0.99
# Beyond these genres, rounds count for all genres together only: names come from callers.
MAX_GENRES = 64


class _Counts:
    """Discounted rounds that reached each position, and those in which it was kept."""

    __slots__ = ("kept", "reached")

    def __init__(self, length: int) -> None:
        self.reached, self.kept = [0.0] * length, [0.0] * length

    def add(self, proposed: int, accepted: int) -> None:
        for j in range(min(proposed, accepted + 1, len(self.reached))):
            self.reached[j] = DISCOUNT * self.reached[j] + 1.0
            self.kept[j] = DISCOUNT * self.kept[j] + (j < accepted)

    def survival(self, prior: tuple[float, ...]) -> tuple[float, ...]:
        """Product-limit survival of the prior's positions, each shrunk towards the prior's chance."""
        out, before, alive = [], 1.0, 1.0
        for j, expected in enumerate(prior):
            chance = expected / before if before > 0.0 else 0.0
            reached, kept = (self.reached[j], self.kept[j]) if j < len(self.reached) else (0.0, 0.0)
            alive *= min((kept + PRIOR_ROUNDS * chance) / (reached + PRIOR_ROUNDS), 1.0)
            out.append(alive)
            before = expected
        return tuple(out)


class Acceptance:
    """Statistics of drafters that start from the shipped ones and follow what is seen.

    Args:
        shipped: drafters by genre, as measured beforehand; ``""`` is for any other genre. A drafter that is listed for
            some genres counts for all: an unseen genre has its all-genre statistics, which start from those of ``""``,
            or else from the mean of the shipped ones.
    """

    def __init__(self, shipped: Mapping[str, tuple[DraftStatistics, ...]]) -> None:
        self._shipped = {(entry.name, genre): entry for genre, entries in shipped.items() for entry in entries}
        self._general: dict[str, DraftStatistics] = {}
        for name in tuple(dict.fromkeys(name for name, _ in self._shipped)):
            entries = [entry for (known, _), entry in self._shipped.items() if known == name]
            if (name, "") in self._shipped:
                entries = [self._shipped.pop((name, ""))]
            columns = zip(*(entry.survival for entry in entries), strict=False)  # up to the shortest
            mean = tuple(sum(column) / len(entries) for column in columns)
            self._general[name] = replace(entries[0], survival=mean)
        self._all = {name: _Counts(len(entry.survival)) for name, entry in self._general.items()}
        self._by_genre: dict[tuple[str, str], _Counts] = {}

    @property
    def drafters(self) -> tuple[str, ...]:
        """Names, in the shipped order."""
        return tuple(self._general)

    def observe(self, done: DraftRound) -> None:
        """Take one round. A drafter that was not shipped has no price and is left out."""
        if done.drafter not in self._all:
            return
        self._all[done.drafter].add(done.proposed, done.accepted)
        key = (done.drafter, done.genre)
        if key not in self._by_genre and len({genre for _, genre in self._by_genre} | {done.genre}) > MAX_GENRES:
            return
        entry = self._shipped.get(key, self._general[done.drafter])
        self._by_genre.setdefault(key, _Counts(len(entry.survival))).add(done.proposed, done.accepted)

    def statistics(self, genre: str) -> tuple[DraftStatistics, ...]:
        """All drafters in ``genre``, as ``Situation.drafts`` takes them."""
        return tuple(self.of(name, genre) for name in self._general)

    def of(self, drafter: str, genre: str) -> DraftStatistics:
        """What is known of ``drafter`` in ``genre``. InputError for a drafter that was not shipped."""
        if drafter not in self._general:
            raise InputError(f"no statistics of drafter {drafter}", f"known: {', '.join(self._general) or 'none'}")
        prior = self._shipped.get((drafter, genre))
        if prior is None:
            general = self._general[drafter]
            prior = replace(general, survival=self._all[drafter].survival(general.survival))
        counts = self._by_genre.get((drafter, genre))
        return prior if counts is None else replace(prior, survival=counts.survival(prior.survival))
