"""Sample-and-match sampling: the token at a position is a pure function of (logits, seed, position, history).

Order of operations: penalties, temperature, top-k, top-p, Gumbel-max. The Gumbel noise of a token id depends on
nothing but (seed, position, token id), so a drafter and a target whose candidate sets differ slightly still draw the
same token wherever their distributions agree, and a retry, a batch mate or another machine changes nothing.

The noise is Philox-4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) keyed with
(seed, position) and counted by token id: the i-th 64-bit word of ``numpy.random.Philox(key=(seed, position))``.
numpy promises that this stream never changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from splitglm_core.errors import BadTensor, InputError
from splitglm_core.sampling import SamplingParams

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]
Words = npt.NDArray[np.uint64]

_SORTED_AT_ONCE = 2048
_MAX_SPLITS = 40


class Sampler:
    """Chooses the tokens of one reply.

    ``pick`` changes nothing; ``commit`` adds one token to the history that the penalties look at.

    Args:
        params: how to choose.
        generated: tokens of this reply so far (never the prompt's), e.g. after a fail-over.
    """

    def __init__(self, params: SamplingParams, generated: Iterable[int] = ()) -> None:
        self.params = params
        self._counts: dict[int, int] = Counter(generated)
        if min(self._counts, default=0) < 0:
            raise InputError("a token id is negative")

    def commit(self, token: int) -> None:
        """Count ``token`` as generated."""
        if token < 0:
            raise InputError(f"token id {token} is negative")
        self._counts[token] = self._counts.get(token, 0) + 1

    def fork(self) -> Sampler:
        """An independent copy: a drafter commits its guesses to the copy and throws it away."""
        copy = Sampler(self.params)
        copy._counts = dict(self._counts)
        return copy

    def pick(self, logits: Logits, position: int) -> int:
        """The token at ``position``.

        Args:
            logits: float [V], finite.
            position: index of the token to choose in the sequence (prompt included), 0 <= position < 2**64.

        Raises:
            BadTensor: not one-dimensional, empty, or not finite.
        """
        if logits.ndim != 1 or logits.size == 0 or logits.dtype.kind != "f":
            raise BadTensor(f"logits must be a non-empty vector of floats, not {logits.dtype} {logits.shape}")
        if not np.isfinite(logits).all():
            raise BadTensor("logits hold a value that is not finite", "another precision or codec for this model")
        if not 0 <= position < 2**64:
            raise InputError(f"position {position} is outside [0, 2**64)")
        scores = self._penalised(logits)
        if self.params.temperature == 0.0:
            return int(scores.argmax())  # numpy returns the first, i.e. lowest, id among equals
        ids, scaled = candidates(scores, self.params)
        words = _words(self.params.seed, position, scores.size)
        return int(ids[_gumbel_argmax(scaled, words if ids.size == words.size else words[ids])])

    def _penalised(self, logits: Logits) -> Logits:
        params = self.params
        if not params.needs_history or not self._counts:
            return logits
        ids = np.fromiter(self._counts.keys(), dtype=np.intp, count=len(self._counts))
        counts = np.fromiter(self._counts.values(), dtype=np.float64, count=len(self._counts))
        inside = ids < logits.size
        ids, counts = ids[inside], counts[inside]
        seen = logits[ids].astype(np.float64)
        seen = np.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
        seen -= params.frequency_penalty * counts + params.presence_penalty
        scores = logits.copy()
        scores[ids] = seen
        return scores


def candidates(scores: Logits, params: SamplingParams) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Token ids that temperature, top-k and top-p leave, ascending, with their scaled scores (temperature > 0).

    top-k keeps exactly k ids and top-p the smallest set whose probability, among the ids that top-k left, reaches
    ``top_p``; among equal scores the lower id stays.
    """
    ids = np.arange(scores.size, dtype=np.intp)
    if 0 < params.top_k < scores.size:
        ids = ids[_largest(scores, params.top_k)]
    scaled = scores[ids].astype(np.float64) / params.temperature
    if params.top_p >= 1.0:
        return ids, scaled
    mass = np.exp(scaled - scaled.max())
    total = mass.sum()
    # All ids below this mass together weigh less than what top-p cuts off anyway.
    heavy = np.flatnonzero(mass >= (1.0 - params.top_p) * total / mass.size * (1.0 - 1e-9))
    ids, scaled, mass = ids[heavy], scaled[heavy], mass[heavy]
    kept = _nucleus(mass, params.top_p * total)
    return ids[kept], scaled[kept]


def gumbel(seed: int, position: int, ids: Ids) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of token ``ids`` at one position; a function of (seed, position, id) alone."""
    return _noise(_words(seed, position, int(ids.max()) + 1)[ids])


def _words(seed: int, position: int, count: int) -> Words:
    """The first ``count`` 53-bit words of the stream of one position; word i belongs to token id i."""
    stream = np.random.Philox(key=np.array([seed, position], dtype=np.uint64))
    return stream.random_raw(count) >> np.uint64(11)


def _noise(words: Words) -> npt.NDArray[np.float64]:
    return -np.log(-np.log((words.astype(np.float64) + 0.5) * 2.0**-53))


def _gumbel_argmax(scaled: npt.NDArray[np.float64], words: Words) -> int:
    """Index of the largest ``scaled + noise``, taking logarithms only where they can matter."""
    top, loudest = int(scaled.argmax()), int(words.argmax())
    two = np.array([top, loudest])
    to_beat = float((scaled[two] + _noise(words[two])).max())
    # No score exceeds scaled[top], so a winner's noise is at least this; the margins cover rounding.
    least_noise = to_beat - float(scaled[top]) - 1e-9
    least_word = max(0, int(np.exp(-np.exp(-least_noise)) * 2.0**53) - 64)
    able = np.flatnonzero(words >= np.uint64(least_word))
    return int(able[(scaled[able] + _noise(words[able])).argmax()])


def _largest(values: npt.NDArray[np.floating], count: int) -> Ids:
    """Ascending indices of the ``count`` largest values; among equals the lowest index wins."""
    threshold = np.partition(values, values.size - count)[values.size - count]
    return _down_to(values, threshold, count - int(np.count_nonzero(values > threshold)))


def _nucleus(mass: npt.NDArray[np.float64], target: float) -> Ids:
    """Ascending indices of the smallest set of largest values whose sum reaches ``target``.

    A selection, not a sort: split at the mean and go on in the half where the sum crosses ``target``.
    """
    window, above = mass, 0.0  # ``above``: weight of the values greater than the whole window
    for _ in range(_MAX_SPLITS):
        if window.size <= _SORTED_AT_ONCE:
            break
        is_upper = window > window.mean()
        upper = window[np.flatnonzero(is_upper)]
        if upper.size == 0:  # all equal
            break
        weight = float(upper.sum())
        if above + weight >= target:
            window = upper
        else:
            window, above = window[np.flatnonzero(~is_upper)], above + weight
    window = np.sort(window)[::-1]
    last = min(int(np.searchsorted(above + np.cumsum(window), target)), window.size - 1)
    threshold = window[last]
    return _down_to(mass, threshold, last + 1 - int(np.count_nonzero(window > threshold)))


def _down_to(values: npt.NDArray[np.floating], threshold: np.floating, equals: int) -> Ids:
    """Ascending indices of the values above ``threshold`` and of the first ``equals`` values at it."""
    keep = values > threshold
    keep[np.flatnonzero(values == threshold)[:equals]] = True
    return np.flatnonzero(keep)
