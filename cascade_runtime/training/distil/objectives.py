"""The methods, each as the loss of one batch. They differ in whose answers are read, which tokens count, and what is
compared there.

    hard           cross entropy on the simulator's answers: the baseline that knows no teacher
    massv          the projector alone on those, then everything on the teacher's own answers (MASSV, Ganesan et al.
                   2025, arXiv 2505.10526, sec. 3)
    distillspec    D(p, q) on the teacher's answers and on the student's own (Zhou et al. 2023, arXiv 2310.08461,
                   alg. 1)
    adaspec        D(p, q) on the tokens where an already distilled model of the student's size gained most
    speckd         D(p, q) on the tokens that the teacher would accept
    cascade_aware  sum over the verifiers k of a cascade of lambda_k D(p_k, q), lambda_k proportional to 1 - acceptance
                   by k on this batch
    layerwise      D(p, q) and the student's states after each block held to the teacher's (TinyBERT, Jiao et al. 2020,
                   eq. 8 and 9 with no projection between: widths are equal)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from cascade_runtime.training.distil.divergences import Divergence
from cascade_runtime.training.distil.selection import accepted, cascade_weights, gains_most
from cascade_runtime.training.distil.states import answer_states, layer_states, log_probs
from cascade_runtime.training.language import IGNORED, Packed, Packer, embedded


@dataclass(frozen=True)
class Reading:
    """One batch as a student reads it. hidden: teacher -> (A, K, D), see `Lessons`; targets (A,): what was said."""

    packed: Packed
    raw: torch.Tensor
    hidden: Mapping[str, torch.Tensor]

    @property
    def targets(self) -> torch.Tensor:
        return self.packed.targets[self.packed.targets != IGNORED]


@dataclass(frozen=True)
class Teaching:
    """What the losses need beside the student. teachers: name -> training model, the student's verifiers in a
    cascade, the last one the target. reference: AdaSPEC's.
    """

    packer: Packer
    divergence: Divergence
    teachers: Mapping[str, Any] = field(default_factory=dict)
    reference: Any = None

    @torch.no_grad()
    def log_p(self, reading: Reading, name: str) -> torch.Tensor:
        """A teacher's log-probabilities (A, V) at the answer positions."""
        return log_probs(self.teachers[name], reading.hidden[name][:, -1].float(), self.packer)

    @property
    def target(self) -> str:
        return list(self.teachers)[-1]

    def log_q(self, student: Any, reading: Reading) -> torch.Tensor:
        """The student's log-probabilities (A, V) at the answer positions."""
        last = answer_states(student, reading.packed, reading.raw, self.packer)[-1]
        return log_probs(student, last, self.packer)


def hard(student: Any, reading: Reading, teaching: Teaching) -> torch.Tensor:
    """Mean cross entropy of what was said."""
    return F.nll_loss(teaching.log_q(student, reading), reading.targets)


def self_distilled(student: Any, reading: Reading, teaching: Teaching) -> torch.Tensor:
    """Mean cross entropy of what the target chooses along its own answers."""
    chosen = teaching.log_p(reading, teaching.target).argmax(-1)
    return F.nll_loss(teaching.log_q(student, reading), chosen)


def distillspec(student: Any, reading: Reading, teaching: Teaching) -> torch.Tensor:
    """Mean divergence over all tokens."""
    log_p = teaching.log_p(reading, teaching.target)
    return teaching.divergence(log_p, teaching.log_q(student, reading)).mean()


def adaspec(student: Any, reading: Reading, teaching: Teaching) -> torch.Tensor:
    """Mean divergence over the tokens that `gains_most` keeps of this batch."""
    log_p, log_q = teaching.log_p(reading, teaching.target), teaching.log_q(student, reading)
    with torch.no_grad():
        kept = gains_most(log_p, log_q.detach(), teaching.log_q(teaching.reference, reading))
    return teaching.divergence(log_p[kept], log_q[kept]).mean()


def speckd(student: Any, reading: Reading, teaching: Teaching) -> torch.Tensor:
    """Mean divergence over accepted tokens; no gradient from a batch without any."""
    log_p, log_q = teaching.log_p(reading, teaching.target), teaching.log_q(student, reading)
    kept = accepted(log_p, log_q.detach())
    return (teaching.divergence(log_p, log_q) * kept).sum() / kept.sum().clamp(min=1)


def cascade_aware(student: Any, reading: Reading, teaching: Teaching) -> torch.Tensor:
    """Weighted sum of the mean divergences from every verifier."""
    log_q = teaching.log_q(student, reading)
    heard = [teaching.log_p(reading, name) for name in teaching.teachers]
    weights = cascade_weights([float(accepted(log_p, log_q.detach()).float().mean()) for log_p in heard])
    losses = [teaching.divergence(log_p, log_q).mean() for log_p in heard]
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()


def layerwise(student: Any, reading: Reading, teaching: Teaching) -> torch.Tensor:
    """Mean divergence, and per layer the squared error of the student's states relative to the teacher's size."""
    packed, teacher = reading.packed, teaching.teachers[teaching.target]
    states = layer_states(student, packed, reading.raw, teaching.packer)
    chosen, real = packed.targets != IGNORED, packed.branch >= 0
    with torch.no_grad():
        fed = embedded(teacher, packed, reading.raw, teaching.packer)
    apart = [_relative_error(states[0][real], fed[real])]
    for mine, held_to in zip(states[1:], reading.hidden[teaching.target].float().unbind(1), strict=True):
        apart.append(_relative_error(mine[chosen], held_to))
    log_p = teaching.log_p(reading, teaching.target)
    log_q = log_probs(student, states[-1][chosen], teaching.packer)
    return teaching.divergence(log_p, log_q).mean() + torch.stack(apart).mean()


def _relative_error(mine: torch.Tensor, held_to: torch.Tensor) -> torch.Tensor:
    return (mine - held_to).square().mean() / held_to.square().mean().clamp(min=1e-8)


OBJECTIVES: dict[str, Callable[[Any, Reading, Teaching], torch.Tensor]] = {
    "hard": hard,
    "massv": self_distilled,
    "distillspec": distillspec,
    "adaspec": adaspec,
    "speckd": speckd,
    "cascade_aware": cascade_aware,
    "layerwise": layerwise,
}
