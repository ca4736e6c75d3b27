"""`Hazards`: the chance that a draft token is refused, by how far beyond the prefix it lies, learnt from verdicts.

The last hundred blocks count, as long as they are alike. Where those of late are refused more or less often than chance
explains, something has changed: what was known is dropped for what they say.
"""

from __future__ import annotations

from collections.abc import Sequence

_FORGET = 0.99  # per verified block: the last hundred count
_LATELY = 0.85  # of late: the last six
_SURPRISE = 3.5  # standard deviations that refusals of late are off
_FLOOR = 0.25  # added to their variance: of drafts that are hardly ever refused, one or two that are tell nothing
_KNOWN = 24  # blocks before anything can surprise
_TRUSTED = 8.0  # drafts that what was seen before counts as after a surprise
_SHRINK = 12.0  # tokens' worth of trust in the pooled hazard, where a position has been tested less often
_PRIOR_TESTED = 4.0
_LARGE = 1e12
POSITIONS = 64


class Hazards:
    """Decayed counts per position. Position 0 is the first draft beyond the verifier's prefix."""

    def __init__(self, prior: float = 0.3) -> None:
        self._tested = [0.0] * POSITIONS
        self._refused = [0.0] * POSITIONS
        self._all_tested = self._all_refused = self._all = 0.0  # of all positions, and blocks
        self._unit = 1.0  # what one block counts now: instead of all counts shrinking, the newest is worth more
        self._prior = prior
        self._late_tested = self._late_refused = 0.0
        self._surplus = self._variance = 0.0  # of refusals of late, over what was expected
        self._since = 0  # blocks since the last surprise
        self.blocks = 0

    def observe(self, drafted: int, accepted: int, weight: float = 1.0) -> bool:
        """One verified block of `drafted` tokens, of which the first `accepted` were right; it counts as `weight`.
        Returns whether it is clear by now that something has changed.
        """
        if not drafted:
            return False
        self.blocks += 1
        last = min(drafted, POSITIONS)
        tested, refused = min(accepted + 1, last), accepted < last
        surprised = self._surprises(tested, refused)
        self._unit /= _FORGET**weight
        worth = weight * self._unit
        for position in range(tested):
            self._tested[position] += worth
        self._all += worth
        self._all_tested += tested * worth
        if refused:
            self._refused[accepted] += worth
            self._all_refused += worth
        if surprised:
            self._begin_anew()
        elif self._unit > _LARGE:
            self._scale(1.0 / self._unit)
        return surprised

    def fade(self, blocks: float) -> None:
        """What is known is old: let it count as so many blocks at most."""
        self._unit *= max(1.0, self._all / self._unit / blocks)

    def _surprises(self, tested: int, refused: bool) -> bool:
        expected = [self._hazard(position) for position in range(tested)]
        self._surplus = _LATELY * self._surplus + refused - sum(expected)
        self._variance = _LATELY**2 * self._variance + sum(hazard * (1.0 - hazard) for hazard in expected)
        self._late_tested = _LATELY * self._late_tested + tested
        self._late_refused = _LATELY * self._late_refused + refused
        self._since += 1
        return self._since > _KNOWN and self._surplus**2 > _SURPRISE**2 * (self._variance + _FLOOR)

    def _begin_anew(self) -> None:
        """Nothing is known but what was seen of late, whatever the position; some of that was before the change."""
        trust = min(1.0, _TRUSTED / self._late_tested)
        self._tested, self._refused, self._unit = [0.0] * POSITIONS, [0.0] * POSITIONS, 1.0
        self._all_tested, self._all_refused = trust * self._late_tested, trust * self._late_refused
        self._all = trust / (1.0 - _LATELY)
        self._surplus = self._variance = 0.0
        self._since = 0

    def _scale(self, by: float) -> None:
        self._tested = [count * by for count in self._tested]
        self._refused = [count * by for count in self._refused]
        self._all_tested, self._all_refused = self._all_tested * by, self._all_refused * by
        self._all, self._unit = self._all * by, self._unit * by

    @property
    def pooled(self) -> float:
        """The hazard over all positions."""
        tested, refused = self._all_tested / self._unit, self._all_refused / self._unit
        return (refused + _PRIOR_TESTED * self._prior) / (tested + _PRIOR_TESTED)

    def _hazard(self, position: int) -> float:
        at = min(position, POSITIONS - 1)
        return (self._refused[at] / self._unit + _SHRINK * self.pooled) / (self._tested[at] / self._unit + _SHRINK)

    def survival(self, length: int) -> list[float]:
        """S[k], k = 0..length: the chance that the first k drafts are all accepted. Positions rarely tested lean on
        the pooled hazard.
        """
        alive, out = 1.0, [1.0]
        for position in range(length):
            alive *= 1.0 - self._hazard(position)
            out.append(alive)
        return out


def geometric(agreement: float, length: int) -> list[float]:
    """Survival when every draft is accepted with the same chance, independently."""
    return [agreement**k for k in range(length + 1)]


def expected_tokens(survival: Sequence[float], drafts: int) -> float:
    """Tokens a pass over so many drafts brings: the accepted run and one of the verifier's own."""
    return sum(survival[: drafts + 1])
