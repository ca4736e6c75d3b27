"""`Hazards`: the chance that a draft token is refused, by how far beyond the prefix it lies, learnt from verdicts."""

from __future__ import annotations

from collections.abc import Sequence

_FORGET = 0.99  # per verified block: the last hundred count
_SHRINK = 12.0  # tokens' worth of trust in the pooled hazard, where a position has been tested less often
_PRIOR_TESTED = 4.0
_LARGE = 1e12
POSITIONS = 64


class Hazards:
    """Decayed counts per position. Position 0 is the first draft beyond the verifier's prefix."""

    def __init__(self, prior: float = 0.3) -> None:
        self._tested = [0.0] * POSITIONS
        self._refused = [0.0] * POSITIONS
        self._unit = 1.0  # what one block counts now: instead of all counts shrinking, the newest is worth more
        self._prior = prior
        self.blocks = 0

    def observe(self, drafted: int, accepted: int, weight: float = 1.0) -> None:
        """One verified block of `drafted` tokens, of which the first `accepted` were right; it counts as `weight`."""
        if not drafted:
            return
        self.blocks += 1
        last = min(drafted, POSITIONS)
        self._unit /= _FORGET**weight
        for position in range(min(accepted + 1, last)):
            self._tested[position] += weight * self._unit
        if accepted < last:
            self._refused[accepted] += weight * self._unit
        if self._unit > _LARGE:
            self._tested = [count / self._unit for count in self._tested]
            self._refused = [count / self._unit for count in self._refused]
            self._unit = 1.0

    @property
    def pooled(self) -> float:
        """The hazard over all positions."""
        tested, refused = sum(self._tested) / self._unit, sum(self._refused) / self._unit
        return (refused + _PRIOR_TESTED * self._prior) / (tested + _PRIOR_TESTED)

    def survival(self, length: int) -> list[float]:
        """S[k], k = 0..length: the chance that the first k drafts are all accepted. Positions rarely tested lean on
        the pooled hazard.
        """
        pooled, alive, out = self.pooled, 1.0, [1.0]
        for position in range(length):
            at = min(position, POSITIONS - 1)
            hazard = (self._refused[at] / self._unit + _SHRINK * pooled) / (self._tested[at] / self._unit + _SHRINK)
            alive *= 1.0 - hazard
            out.append(alive)
        return out


def geometric(agreement: float, length: int) -> list[float]:
    """Survival when every draft is accepted with the same chance, independently."""
    return [agreement**k for k in range(length + 1)]


def expected_tokens(survival: Sequence[float], drafts: int) -> float:
    """Tokens a pass over so many drafts brings: the accepted run and one of the verifier's own."""
    return sum(survival[: drafts + 1])
