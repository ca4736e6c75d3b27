"""`Hazards`: the chance that a draft token is refused, by how far beyond the prefix it lies, learnt from verdicts."""

from __future__ import annotations

from collections.abc import Sequence

_FORGET = 0.99  # per verified block: the last hundred count
_SHRINK = 12.0  # tokens' worth of trust in the pooled hazard, where a position has been tested less often
_PRIOR_TESTED = 4.0
POSITIONS = 64


class Hazards:
    """Decayed counts per position. Position 0 is the first draft beyond the verifier's prefix."""

    def __init__(self, prior: float = 0.3) -> None:
        self._tested = [0.0] * POSITIONS
        self._refused = [0.0] * POSITIONS
        self._prior = prior
        self.blocks = 0

    def observe(self, drafted: int, accepted: int, weight: float = 1.0) -> None:
        """One verified block of `drafted` tokens, of which the first `accepted` were right; it counts as `weight`."""
        if not drafted:
            return
        self.blocks += 1
        last, kept = min(drafted, POSITIONS), _FORGET**weight
        self._tested = [count * kept for count in self._tested]
        self._refused = [count * kept for count in self._refused]
        for position in range(min(accepted + 1, last)):
            self._tested[position] += weight
        if accepted < last:
            self._refused[accepted] += weight

    @property
    def pooled(self) -> float:
        """The hazard over all positions."""
        tested, refused = sum(self._tested), sum(self._refused)
        return (refused + _PRIOR_TESTED * self._prior) / (tested + _PRIOR_TESTED)

    def survival(self, length: int) -> list[float]:
        """S[k], k = 0..length: the chance that the first k drafts are all accepted. Positions rarely tested lean on
        the pooled hazard.
        """
        pooled, alive, out = self.pooled, 1.0, [1.0]
        for position in range(length):
            at = min(position, POSITIONS - 1)
            hazard = (self._refused[at] + _SHRINK * pooled) / (self._tested[at] + _SHRINK)
            alive *= 1.0 - hazard
            out.append(alive)
        return out


def geometric(agreement: float, length: int) -> list[float]:
    """Survival when every draft is accepted with the same chance, independently."""
    return [agreement**k for k in range(length + 1)]


def expected_tokens(survival: Sequence[float], drafts: int) -> float:
    """Tokens a pass over so many drafts brings: the accepted run and one of the verifier's own."""
    return sum(survival[: drafts + 1])
