"""`CostModel`: what a pass of one stage costs, learnt from the passes it ran.

    seconds(rows, tokens, context) = base + per_row * rows + per_token * tokens + per_position * context

rows share the pass, `tokens` are fed in all, `context` is the sum of the positions their KV rows hold. Least squares
with forgetting, no coefficient below zero: a stage that never saw two batch sizes cannot know what a row costs, and a
negative cost would make the policy greedy for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_FORGET = 0.98  # per pass: the last fifty count
_SOLVE, _MANY = 8, 64
_RIDGE = 1e-3  # of the normal matrix: keeps coefficients nobody has seen vary at the prior
_OUTLIER = 4.0  # a pass this many times dearer than predicted was interrupted, and counts as this many times only


@dataclass(frozen=True)
class StepCost:
    """Coefficients in seconds. The same object describes a measured stage, an emulated and a simulated one."""

    base: float
    per_row: float = 0.0
    per_token: float = 0.0
    per_position: float = 0.0

    def seconds(self, rows: float, tokens: float, context: float = 0.0) -> float:
        """What a pass over so many rows, tokens and held positions takes."""
        return self.base + self.per_row * rows + self.per_token * tokens + self.per_position * context


class CostModel:
    """A `StepCost` that follows measurements. `observations` counts them."""

    def __init__(self, prior: StepCost) -> None:
        self._prior = np.array([prior.base, prior.per_row, prior.per_token, prior.per_position])
        self._normal = np.zeros((4, 4))
        self._moment = np.zeros(4)
        self._fit = prior
        self._unsolved = 0  # passes that the fit does not know yet
        self.observations = 0

    def observe(self, rows: int, tokens: int, context: int, seconds: float) -> None:
        """One pass took `seconds`."""
        if self.observations > 8:
            seconds = min(seconds, _OUTLIER * self.fit.seconds(rows, tokens, context))
        features = np.array([1.0, rows, tokens, context])
        self._normal = _FORGET * self._normal + np.outer(features, features)
        self._moment = _FORGET * self._moment + features * seconds
        self.observations += 1
        self._unsolved += 1

    @property
    def fit(self) -> StepCost:
        """The coefficients, once many passes have run of up to seven ago: solving takes longer than a message."""
        if self._unsolved >= (_SOLVE if self.observations > _MANY else 1):
            self._fit, self._unsolved = StepCost(*self._solve()), 0
        return self._fit

    def _solve(self) -> list[float]:
        """Non-negative ridge least squares towards the prior: drop what comes out negative, solve for the rest."""
        scale = np.sqrt(np.maximum(np.diag(self._normal), 1e-12))  # positions are hundreds of times larger than rows
        weight = _RIDGE * np.maximum(scale, scale[0] * np.array([1.0, 1.0, 1.0, 1e2])) ** 2
        free = np.ones(4, bool)
        fit = np.zeros(4)
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
