"""`CostModel`: what a pass of one stage costs, learnt from the passes it ran.

    seconds(rows, tokens, context) = base + per_row * rows + per_token * tokens + per_position * context
                                     + several, where more than one token is fed

rows share the pass, `tokens` are fed in all, `context` is the sum of the positions their KV rows hold. `several`: a
kernel for a single token may be quicker by far, with 4-bit weights by 3.6 steps in one recorded cascade. Least squares
with forgetting, no coefficient below zero: a stage that never saw two batch sizes cannot know what a row costs, and a
negative cost would make the policy greedy for it. When several passes in a row take other times than predicted, the
stage has become slower or faster: all coefficients change alike, and what is old counts little from then on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_FORGET = 0.98  # per pass: the last fifty count
_SOLVE, _MANY = 8, 64
_RIDGE = 1e-3 * np.array([1.0, 1.0, 1.0, 1.0, 10.0])
# of the normal matrix: keeps coefficients nobody has seen vary at the prior, and has `base`, not `several`, take what
# passes that all feed more than one token cannot tell apart
_OUTLIER = 4.0  # a pass this many times dearer than predicted was interrupted, and counts as this many times only
_LATELY = 0.8  # of late: the last five
_SURPRISE, _MOST_OFF = 0.4, 0.6  # how far off they are on average, and how far one may seem to be
_AS_USUAL, _DOUBT = 0.15, 8  # how far off passes on average may be, and for how many of them that is left open


@dataclass(frozen=True)
class StepCost:
    """Coefficients in seconds. The same object describes a measured stage, an emulated and a simulated one."""

    base: float
    per_row: float = 0.0
    per_token: float = 0.0
    per_position: float = 0.0
    several: float = 0.0

    def seconds(self, rows: float, tokens: float, context: float = 0.0) -> float:
        """What a pass over so many rows, tokens and held positions takes."""
        more = self.several if tokens > 1 else 0.0
        return self.base + self.per_row * rows + self.per_token * tokens + self.per_position * context + more

    @property
    def coefficients(self) -> tuple[float, float, float, float, float]:
        """Of the line above."""
        return self.base, self.per_row, self.per_token, self.per_position, self.several

    def times(self, factor: float) -> StepCost:
        """A stage so many times slower."""
        return StepCost(*(factor * each for each in self.coefficients))


class CostModel:
    """A `StepCost` that follows measurements. `observations` counts them."""

    def __init__(self, prior: StepCost) -> None:
        self._prior = np.array(prior.coefficients)
        self._normal = np.zeros((5, 5))
        self._moment = np.zeros(5)
        self._fit = self._trusted = prior  # trusted: before the last passes took other times
        self._doubted = 0  # passes in a row that have left it open what they mean
        self._unsolved = 0  # passes that the fit does not know yet
        self._off = self._late_s = self._late_trusted_s = 0.0  # of the last passes
        self.observations = 0

    def observe(self, rows: int, tokens: int, context: int, seconds: float) -> bool:
        """One pass took `seconds`. Returns whether it is clear by now that something has changed."""
        if self.observations > 8:
            seconds = min(seconds, _OUTLIER * self.fit.seconds(rows, tokens, context))
        surprised = self.observations > _MANY and self._surprises(rows, tokens, context, seconds)
        if surprised:
            self.change(self._late_s / self._late_trusted_s)
        features = np.array([1.0, rows, tokens, context, float(tokens > 1)])
        self._normal = _FORGET * self._normal + np.outer(features, features)
        self._moment = _FORGET * self._moment + features * seconds
        self.observations += 1
        self._unsolved += 1
        return surprised

    def _surprises(self, rows: int, tokens: int, context: int, seconds: float) -> bool:
        self._doubted = self._doubted + 1 if self.doubtful else 0
        if self._doubted >= _DOUBT:  # neither as usual nor a surprise: it is what the fit has learnt meanwhile
            self._off = 0.0
        if not self.doubtful:
            self._trusted = self.fit
        trusted = max(self._trusted.seconds(rows, tokens, context), 1e-12)
        self._off = _LATELY * self._off + (1.0 - _LATELY) * max(-_MOST_OFF, min(_MOST_OFF, seconds / trusted - 1.0))
        self._late_s = 0.5 * self._late_s + seconds
        self._late_trusted_s = 0.5 * self._late_trusted_s + trusted
        return abs(self._off) > _SURPRISE

    @property
    def doubtful(self) -> bool:
        """The last passes took other times than they should have, and it is not clear yet what that means."""
        return abs(self._off) > _AS_USUAL

    def change(self, factor: float) -> None:
        """All passes take `factor` times as long from now on, and no more is known. No news where that is 1."""
        if factor == 1.0:
            return
        known = self._trusted if self.observations > _MANY else self.fit
        self._fit = self._trusted = known.times(factor)
        self._prior = np.array(self._trusted.coefficients)
        self._normal, self._moment, self._unsolved = np.zeros((5, 5)), np.zeros(5), 0
        self._off = self._late_s = self._late_trusted_s = 0.0

    @property
    def fit(self) -> StepCost:
        """The coefficients, once many passes have run of up to seven ago: solving takes longer than a message."""
        if self._unsolved >= (_SOLVE if self.observations > _MANY else 1):
            self._fit, self._unsolved = StepCost(*self._solve()), 0
        return self._fit

    def _solve(self) -> list[float]:
        """Non-negative ridge least squares towards the prior: drop what comes out negative, solve for the rest."""
        scale = np.sqrt(np.maximum(np.diag(self._normal), 1e-12))  # positions are hundreds of times larger than rows
        weight = _RIDGE * np.maximum(scale, scale[0] * np.array([1.0, 1.0, 1.0, 1e2, 1.0])) ** 2
        free = np.ones(5, bool)
        fit = np.zeros(5)
        while free.any():
            left = self._normal[np.ix_(free, free)] + np.diag(weight[free])
            fit[:] = 0.0
            fit[free] = np.linalg.solve(left, (self._moment + weight * self._prior)[free])
            if (fit[free] >= 0).all():
                break
            free &= fit > 0
        return [float(value) for value in fit]

    def seconds(self, rows: float, tokens: float, context: float = 0.0) -> float:
        """What a pass is predicted to take."""
        return self.fit.seconds(rows, tokens, context)
