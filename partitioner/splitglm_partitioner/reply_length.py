"""How many tokens a reply will have, per genre, given the caller's bound.

A reply that ended at its bound would have gone on: its length is censored there. What is estimated is therefore the
restricted mean of the product-limit survival (Kaplan and Meier 1958; Irwin 1949): the expected number of tokens when
each reply ends by itself or at this request's bound, whichever is first.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import NamedTuple

from splitglm_partitioner.bounds import MAX_TOKENS, check_count
from splitglm_partitioner.observations import ReplyEnded

WINDOW = 16
# From this many replies on, the shortest and the longest are left out.
TRIM_FROM = 8
MAX_GENRES = 64


class _Length(NamedTuple):
    tokens: int
    censored: bool


class ReplyLength:
    """Expected new tokens, from the last ``WINDOW`` replies of a genre.

    Before any, the bound itself: it is all that is known, and plans for long replies are right for a caller who sets
    no more than needed. After ``n`` replies the bound still weighs as much as ``1 / (1 + n)`` of one.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[str, deque[_Length]] = OrderedDict()

    def observe(self, ended: ReplyEnded) -> None:
        """Take one reply. Of more than ``MAX_GENRES`` genres the one that was not used for longest is forgotten."""
        lengths = self._seen.setdefault(ended.genre, deque(maxlen=WINDOW))
        self._seen.move_to_end(ended.genre)
        if len(self._seen) > MAX_GENRES:
            self._seen.popitem(last=False)
        tokens = ended.outcome.new_tokens
        lengths.append(_Length(tokens, tokens >= ended.max_new_tokens))

    def expected(self, genre: str, max_new_tokens: int) -> int:
        """Tokens of the next reply, in ``[1, max_new_tokens]``. InputError for a bound below 1."""
        check_count("max_new_tokens", max_new_tokens, 1, MAX_TOKENS)
        ordered = sorted(self._seen.get(genre, ()))
        prior = 1.0 / (1.0 + len(ordered))
        if len(ordered) >= TRIM_FROM:
            ordered = ordered[1:-1]
        at_risk = len(ordered) + prior
        mean, alive, since = 0.0, 1.0, 0
        for length in ordered:
            upto = min(length.tokens, max_new_tokens)
            mean += alive * (upto - since)
            since = upto
            if not length.censored:
                alive *= 1.0 - 1.0 / at_risk
            at_risk -= 1.0
        # Who is alive after the longest reply seen, the bound's own share included, may go on up to the bound.
        mean += alive * (max_new_tokens - since)
        return min(max(1, math.ceil(mean - 1e-9)), max_new_tokens)
