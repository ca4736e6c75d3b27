"""Distillation losses by value and by gradient, and which tokens each method counts."""

from __future__ import annotations

import math

import pytest
import torch

from cascade_runtime.training.distil.divergences import LOSSES, fkl, jsd, rkl, tvd
from cascade_runtime.training.distil.selection import accepted, cascade_weights, gains_most, layer_pairs

P = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]], dtype=torch.float64)
Q = torch.tensor([[0.25, 0.5, 0.25], [0.9, 0.05, 0.05]], dtype=torch.float64)


def test_divergences_have_their_hand_values() -> None:
    log_p, log_q = P.log(), Q.log()
    assert fkl(log_p, log_q)[0].item() == pytest.approx(0.25 * math.log(2))  # .5 ln 2 - .25 ln 2
    assert tvd(log_p, log_q)[0].item() == pytest.approx(0.25)
    three_halves = 0.375  # m = (.375, .375, .25)
    by_hand = 0.5 * math.log(0.5 / three_halves) + 0.25 * math.log(0.25 / three_halves)
    assert jsd(log_p, log_q)[0].item() == pytest.approx(by_hand)
    skew = torch.tensor([[0.8, 0.1, 0.1]], dtype=torch.float64).log()
    flat = torch.full((1, 3), 1 / 3, dtype=torch.float64).log()
    assert fkl(skew, flat).item() == pytest.approx(0.8 * math.log(2.4) + 0.2 * math.log(0.3))
    assert rkl(skew, flat).item() == pytest.approx((math.log(1 / 2.4) + 2 * math.log(1 / 0.3)) / 3)
    assert rkl(skew, flat).item() == pytest.approx(fkl(flat, skew).item()) != pytest.approx(fkl(skew, flat).item())
    for loss in LOSSES.values():
        assert loss(log_p, log_q)[1].item() == pytest.approx(0.0, abs=1e-12)


def test_one_minus_tvd_is_the_chance_of_acceptance_by_enumeration() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(20, 7, generator=generator, dtype=torch.float64).mul(2).softmax(-1) for _ in range(2))
    chance = torch.zeros(20, dtype=torch.float64)
    for token in range(7):  # drawn from q, accepted with min(1, p / q)
        chance += q[:, token] * torch.clamp(p[:, token] / q[:, token], max=1.0)
    assert torch.allclose(chance, 1 - tvd(p.log(), q.log()))
    assert bool((jsd(p.log(), q.log()) <= math.log(2)).all())


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    log_p = torch.randn(3, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](log_p, z.log_softmax(-1)), logits)


def test_forward_kl_pulls_logits_by_q_minus_p() -> None:
    logits = Q.log().clone().requires_grad_()
    fkl(P.log(), logits.log_softmax(-1)).sum().backward()
    assert torch.allclose(logits.grad, Q - P)


def _two(first: list[float]) -> torch.Tensor:
    return torch.tensor([[a, 1 - a] for a in first], dtype=torch.float64).log()


def test_adaspec_keeps_the_tokens_where_the_reference_gained_most() -> None:
    log_p = _two([0.9] * 5)
    draft = _two([0.5, 0.1, 0.9, 0.1, 0.2])
    reference = _two([0.9, 0.1, 0.5, 0.9, 0.9])  # gains: some, none, negative, most, second
    assert gains_most(log_p, draft, reference).tolist() == [False, False, False, True, True]  # 40 % of five
    assert gains_most(log_p, draft, reference, 0.6).tolist() == [True, False, False, True, True]
    assert gains_most(log_p[:1], draft[:1], reference[:1], 0.1).tolist() == [True]


def test_speckd_masks_what_the_teacher_would_refuse() -> None:
    log_p = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]).log()
    log_q = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]).log()
    assert accepted(log_p, log_q).tolist() == [True, False, False]
    assert accepted(log_p, log_q, top_k=2).tolist() == [True, True, False]


def test_a_verifier_weighs_as_much_as_it_refuses() -> None:
    assert cascade_weights([0.9, 0.7]) == pytest.approx([0.25, 0.75])
    assert cascade_weights([1.0, 1.0]) == [0.5, 0.5]
    assert cascade_weights([0.3]) == [1.0]


def test_layers_are_paired_evenly_and_last_to_last() -> None:
    assert layer_pairs(1, 20) == [20]
    assert layer_pairs(5, 20) == [4, 8, 12, 16, 20]
    assert layer_pairs(2, 3) == [2, 3]
