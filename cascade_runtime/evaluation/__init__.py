"""How good the bundled family is, measured: `evaluate_family(path) -> FamilyReport`.

simulated.py     fresh held-out scenes: accuracy per question kind and model, agreement of light and mid with heavy
recordings.py    real recordings: the answers beside the facts that can be computed from the events themselves
acceptance.py    what a drafter is worth, teacher-forced and in a cascade
direction.py     when a direction is nearly right
report.py        the whole, as tables and as one JSON object

python -m cascade_runtime.evaluation [--family DIR] [--recordings DIR] [--scenes N] [--seed N]
"""

from __future__ import annotations

from cascade_runtime.evaluation.report import FamilyReport, evaluate_family

__all__ = ["FamilyReport", "evaluate_family"]
