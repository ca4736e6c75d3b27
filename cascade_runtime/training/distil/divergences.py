"""How far a drafter's distribution q is from its verifier's p, per token: the four divergences that drafters are
trained with.

    fkl   D_KL(p || q)                   covers all that p may say                 DistillSpec, sec. 4 and table 1
    rkl   D_KL(q || p)                   says only what p may say                  (Zhou et al. 2023, arXiv 2310.08461)
    jsd   (D_KL(p || m) + D_KL(q || m)) / 2, m = (p + q) / 2
    tvd   sum |p - q| / 2                one minus the chance of acceptance

The ratio test accepts a token x drawn from q with probability min(1, p(x) / q(x)), so it accepts with probability
sum min(p, q) = 1 - tvd (Leviathan et al. 2023, arXiv 2211.17192, theorem 3.5 and corollary 3.6). Gradients reach q; p
is the teacher's and has none where the caller took it without.

Shapes: log-probabilities (N, V) in, one number per token (N,) out, in nats (tvd: a probability).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def fkl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Forward Kullback-Leibler divergence, the loss of Hinton et al. 2015 and of DistillSpec's FKL."""
    return _kl(log_p, log_q)


def rkl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Reverse Kullback-Leibler divergence (MiniLLM, Gu et al. 2023, eq. 1; DistillSpec's RKL)."""
    return _kl(log_q, log_p)


def jsd(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence with beta = 1/2 (Agarwal et al. 2023, arXiv 2306.13649, eq. 1); at most ln 2."""
    half = torch.logaddexp(log_p, log_q) - torch.log(log_p.new_tensor(2.0))
    return (_kl(log_p, half) + _kl(log_q, half)) / 2


def tvd(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Total variation distance, one minus the chance that the ratio test accepts (DistillSpec's TVD; TVD++ without
    the reward)."""
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


LOSSES: dict[str, Divergence] = {"fkl": fkl, "rkl": rkl, "jsd": jsd, "tvd": tvd}
