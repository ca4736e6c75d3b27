"""The gate: may features adapted from events stand in for the dense features of the target's own tower?

Per frame: cosine(aligned, dense), averaged over patches. At or above `accept` the frame passes, below it the dense
frame is used; below `reject` the adapter is plainly wrong for this scene, which the decision says. A frame must also
beat a random projection of the same event features: a space with one dominant direction gives high cosines to
anything.

Computing the dense features in order to compare saves nothing, so `predicted` asks a small head for the cosine instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from cascade_runtime.config import GateConfig

_PROJECTION_SEED = 0x5EED


@dataclass(frozen=True)
class GateDecision:
    """What the gate decided, per frame: the cosine (predicted or measured), the random baseline, and the verdict.

    verdicts: "accepted", "dense" (between the bounds) or "rejected" (below `reject` or no better than the baseline).
    """

    policy: str
    cosines: tuple[float, ...]
    baselines: tuple[float, ...]
    verdicts: tuple[str, ...]

    @property
    def accepted(self) -> tuple[bool, ...]:
        return tuple(verdict == "accepted" for verdict in self.verdicts)

    def to_dict(self) -> dict[str, object]:
        """Plain numbers for JSON."""
        return {
            "policy": self.policy,
            "cosines": [round(cosine, 4) for cosine in self.cosines],
            "baselines": [round(cosine, 4) for cosine in self.baselines],
            "verdicts": list(self.verdicts),
        }


def frame_cosines(a_FPD: torch.Tensor, b_FPD: torch.Tensor) -> tuple[float, ...]:
    """Mean over patches of the cosine between two feature arrays, one number per frame."""
    return tuple(F.cosine_similarity(a_FPD.float(), b_FPD.float(), dim=-1).mean(-1).tolist())


def random_baseline(event_FPE: torch.Tensor, dense_FPD: torch.Tensor) -> tuple[float, ...]:
    """Cosine that a fixed random projection of the event features reaches, per frame."""
    generator = torch.Generator().manual_seed(_PROJECTION_SEED)
    matrix = torch.randn(event_FPE.shape[-1], dense_FPD.shape[-1], generator=generator).to(event_FPE.device)
    return frame_cosines(event_FPE.float() @ matrix, dense_FPD)


def decide(config: GateConfig, cosines: Sequence[float], baselines: Sequence[float] = ()) -> GateDecision:
    """The verdict per frame. Without measured baselines (policy "predicted") that condition cannot be checked."""
    against = tuple(baselines) or (-1.0,) * len(cosines)
    verdicts = []
    for cosine, baseline in zip(cosines, against, strict=True):
        if not cosine >= config.reject or cosine <= baseline:
            verdicts.append("rejected")
        else:
            verdicts.append("accepted" if cosine >= config.accept else "dense")
    return GateDecision(config.policy, tuple(cosines), tuple(baselines), tuple(verdicts))
