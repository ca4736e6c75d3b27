"""`Costs`: what passes cost while there are drafts, and while there are none.

The two are measured in turn, for drafters may share a device with the stage. What makes a stage slower or faster does
so with drafts and without: the one that is not in use follows the other.
"""

from __future__ import annotations

from cascade_runtime.scheduling.cost import CostModel, StepCost

_CLEAR = 1.5  # less of a change is not told from noise, or from a drafter that takes its share
_KNOWN = 32  # passes before the one in use says anything of the other


class Costs:
    """prior: as profiled at the start, with drafts or without."""

    def __init__(self, prior: StepCost) -> None:
        self._models = {True: CostModel(prior), False: CostModel(prior)}
        self._used = True
        self._shape = (1.0, 1.0, 0.0)  # of a pass, when the other was last in use
        self._then_s = 0.0  # that it took in the mode used now; 0: not known

    def observe(self, drafting: bool, rows: int, tokens: int, context: int, seconds: float) -> bool:
        """One pass took `seconds`. Returns whether it is clear by now that something has changed."""
        if drafting != self._used:
            self._models[drafting].change(self._drift())
            self._used, self._shape = drafting, (rows, rows, context)
            known = self._models[drafting].observations >= _KNOWN
            self._then_s = self._models[drafting].seconds(*self._shape) if known else 0.0
        return self._models[drafting].observe(rows, tokens, context, seconds)

    def fit(self, drafting: bool) -> StepCost:
        """What a pass costs now. Without drafts, before there were any such passes: as with them."""
        if not drafting and not self._models[False].observations:
            return self._models[True].fit
        fit = self._models[drafting].fit
        return fit if drafting == self._used else fit.times(self._drift())

    @property
    def doubtful(self) -> bool:
        """As in `CostModel`, of the mode in use."""
        return self._models[self._used].doubtful

    def _drift(self) -> float:
        """How many times as long passes take as when the mode that is not in use last was."""
        if not self._then_s:
            return 1.0
        drift = self._models[self._used].seconds(*self._shape) / self._then_s
        return drift if max(drift, 1.0 / drift) > _CLEAR else 1.0
