"""How the bundled family is made, from nothing but a simulator: `train_family(out_dir)`.

scenes.py, facts.py     procedural scenes, an event camera, and what is true of them
pool.py                 their activity maps on disk, and the turns that make one clip into 32
questions.py            questions and answers from facts, and facts read back from answers
tower.py                the vision tower learns to see
language.py, clips.py   language models learn to answer; growth from shallow to deep
adapter.py              event encoder and adapter
distillation.py         light and mid learn heavy's own words
descent.py              how fast each of them learns, and one step of it
plan.py                 all of it in order
compressor.py           for a drafter that is to see fewer visual tokens, afterwards
distil/                 a drafter once more, for acceptance: `cascade train distil`
event_adapters.py       adapters of every kind, fitted to the same pairs
heads.py, spoken.py     heads that draft from heavy's hidden states, and what they are taught: `cascade train heads`
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["train_family"]


def train_family(out_dir: str | Path, *, quick: bool = False, progress: Callable[[str], None] = print) -> Path:
    """Train the whole family into `out_dir` (FULL: hours on two cores; quick: minutes, and only proves the path)."""
    from cascade_runtime.training.plan import train_family as run

    return run(out_dir, quick=quick, progress=progress)
