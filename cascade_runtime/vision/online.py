"""`OnlineUpdater`: an adapter goes on learning from the frames that the gate refuses.

Under the gate policy "full" the dense features are there anyway, to verify. Refused frames are kept in a bounded memory
beside accepted ones, and now and then the adapter takes a few gradient steps on both; an update after which the
memory's mean cosine is lower is undone. `gate.learns` of a recipe asks for it; the checkpoint stays as it is.

Only in mode "strict": the target sees dense features there, so what drafters see never changes an answer.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch.nn import functional as F

from cascade_runtime.config import Recipe
from cascade_runtime.errors import ConfigError
from cascade_runtime.models.event_encoder import Adapter, alignment_loss
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.gate import GateDecision

_BATCH = 32
_Pair = tuple[torch.Tensor, torch.Tensor]


class OnlineUpdater:
    """Updates `adapter` in place.

    memory: frames kept of each sort, refused and accepted, the oldest forgotten first. every: new refused frames
    between two updates of `steps` steps. refused, updates, undone: counts, which only rise. Raises `ConfigError`.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        memory: int = 128,
        every: int = 8,
        steps: int = 8,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        for name, value in (("memory", memory), ("every", every), ("steps", steps)):
            if not 1 <= value <= 10_000:
                raise ConfigError(name, value, "1..10000")
        self.adapter, self.every, self.steps = adapter, every, steps
        self._refused: deque[_Pair] = deque(maxlen=memory)
        self._accepted: deque[_Pair] = deque(maxlen=memory)
        trained = [weight for weight in adapter.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
        self._rng = np.random.default_rng(seed)
        self._new = 0
        self.refused = self.updates = self.undone = 0

    @property
    def frames(self) -> int:
        """Frames in memory, at most twice `memory`."""
        return len(self._refused) + len(self._accepted)

    def observe(self, features: VisualFeatures, dense: VisualFeatures, decision: GateDecision) -> bool:
        """One recording's event features, dense features and verdicts; whether that led to an update."""
        mine, wanted = features.tensor().float(), dense.tensor().float()
        for frame, accepted in enumerate(decision.accepted):
            (self._accepted if accepted else self._refused).append((mine[frame], wanted[frame]))
            self._new += not accepted
            self.refused += not accepted
        if self._new < self.every:
            return False
        self._new = 0
        return self._update()

    def _update(self) -> bool:
        before = {name: weight.detach().clone() for name, weight in self.adapter.state_dict().items()}
        cosine = self._cosine()
        with torch.enable_grad():
            for _ in range(self.steps):
                features, dense = _stacked([*self._some(self._refused), *self._some(self._accepted)])
                aligned = self.adapter(features)
                near = F.cosine_similarity(aligned.detach(), dense, dim=-1).mean(-1)
                gate = (self.adapter.predicted_cosine(features) - near).square().mean()
                self._optimizer.zero_grad(set_to_none=True)
                (alignment_loss(aligned, dense) + gate).backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
        if not self._cosine() >= cosine:  # NaN too
            self.adapter.load_state_dict(before)
            self._optimizer.state.clear()
            self.undone += 1
            return False
        self.updates += 1
        return True

    def _some(self, frames: deque[_Pair]) -> list[_Pair]:
        count = min(_BATCH, len(frames))
        return [frames[i] for i in self._rng.choice(len(frames), count, replace=False)] if count else []

    @torch.no_grad()
    def _cosine(self) -> float:
        features, dense = _stacked([*self._refused, *self._accepted])
        return float(F.cosine_similarity(self.adapter(features), dense, dim=-1).mean())


def updater_of(recipe: Recipe, adapter: Adapter | None) -> OnlineUpdater | None:
    """What lets the adapter learn, where the recipe asks for it."""
    return OnlineUpdater(adapter) if recipe.gate.learns and adapter is not None else None


def _stacked(pairs: list[_Pair]) -> _Pair:
    return torch.stack([features for features, _ in pairs]), torch.stack([dense for _, dense in pairs])
