"""`DistilConfig`: how a student is taught, how much and from what. Refuses what cannot be meant."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_runtime.errors import ConfigError
from cascade_runtime.training.descent import Training
from cascade_runtime.training.distil.divergences import LOSSES

METHODS = ("hard", "massv", "distillspec", "adaspec", "speckd", "cascade_aware", "layerwise")


@dataclass(frozen=True, kw_only=True)
class DistilConfig(Training):
    """scenes: clips of the lessons, each with `pairs` questions; steps: of `batch` clips each.

    aligned: share of the batches that are seen through event encoder and adapter, as a drafter sees in a cascade.
    own: share of DistillSpec's batches that are the student's own answers, given anew `rounds` times.
    fresh: begin with random weights (the tower is kept), so that a baseline can be made.
    save_every: steps between two checkpoints from which a run that was stopped goes on. Raises `ConfigError`.
    """

    method: str = "distillspec"
    loss: str = "fkl"
    scenes: int = 400
    pairs: int = 5
    steps: int = 200
    learning_rate: float = 8e-4
    seed: int = 7
    aligned: float = 0.5
    own: float = 0.25
    rounds: int = 2
    fresh: bool = False
    save_every: int = 50
    max_tokens: int = 64

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError("method", self.method, f"one of {', '.join(METHODS)}")
        if self.loss not in LOSSES:
            raise ConfigError("loss", self.loss, f"one of {', '.join(LOSSES)}")
        for name in ("scenes", "pairs", "steps", "batch", "rounds", "save_every", "max_tokens"):
            if not 1 <= getattr(self, name) <= 1_000_000:
                raise ConfigError(name, getattr(self, name), "1 to 1000000")
        for name in ("aligned", "own", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(name, getattr(self, name), "0 to 1")
        if not 0 < self.learning_rate < 1:
            raise ConfigError("learning_rate", self.learning_rate, "above 0, below 1")
        if self.batch > self.scenes:
            raise ConfigError("batch", self.batch, f"at most {self.scenes}, the scenes")
