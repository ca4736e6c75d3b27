"""Rules that weigh laws, by enumeration: all answers of three tokens, real engine, nested levels; and wrong variants.

`exact_laws.py` drives the runtime's own functions along every branch of chance, so nothing here is sampled but in the
tests of `Chance`. Biases of the wrong variants depend on the toy laws; each has to be far above rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_laws import VOCAB, Answers, TableDecoder, ToyCascade, chain, random_law, total_variation, toy_laws

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.acceptance import ratio
from cascade_runtime.decoding.acceptance.chance import Chance
from cascade_runtime.decoding.acceptance.fuzzy import LossyFuzzy, divergence
from cascade_runtime.decoding.acceptance.law import Law, laws
from cascade_runtime.decoding.acceptance.ratio import Ratio, ratio_test
from cascade_runtime.decoding.acceptance.rejection import Rejection
from cascade_runtime.decoding.acceptance.rule import Rule
from cascade_runtime.decoding.acceptance.speculative_cascade import LossyCascade, LossyCascadeToken, chow, diff, opt
from cascade_runtime.decoding.acceptance.typical import LossyTypical, is_typical
from cascade_runtime.decoding.choice import choose

LENGTH = 3
SEEDS = range(12)
Tables = list[dict[tuple[int, ...], Law]]


def target(tables: Tables, length: int = LENGTH) -> Answers:
    """The last level alone."""
    return chain(lambda prefix: tables[-1][prefix].chances, length)


def nested(tables: Tables, rule: Rule) -> Callable[[tuple[int, ...]], torch.Tensor]:
    """The law a rule promises where every position has a draft of every level below."""

    def law(prefix: tuple[int, ...]) -> torch.Tensor:
        said = tables[0][prefix]
        for edge, table in enumerate(tables[1:]):
            said = rule.target(edge, said, table[prefix])
        return said.chances

    return law


@pytest.mark.parametrize("gammas", [*itertools.product((1, 2, 3), repeat=2), (2,), ()])
def test_the_ratio_rule_gives_the_targets_law_at_any_depth(gammas: tuple[int, ...]) -> None:
    length = 4 if max(gammas, default=0) == 3 else LENGTH  # a block of three needs room for a fourth
    tables = toy_laws(1, len(gammas) + 1, length)
    answers = ToyCascade(tables, gammas, Ratio(len(gammas))).answers(length)
    assert total_variation(answers, target(tables, length)) < 1e-12


def test_four_levels_and_laws_that_exclude_tokens() -> None:
    tables = toy_laws(2, 4, LENGTH)
    for k, gone in ((0, 0), (1, 1), (3, 2)):  # top-k may leave each level other tokens
        for prefix, law in tables[k].items():
            chances = law.chances.clone()
            chances[gone] = 0.0
            tables[k][prefix] = Law(chances / chances.sum(), law.own)
    answers = ToyCascade(tables, (2, 1, 2), Ratio(3)).answers(LENGTH)
    assert total_variation(answers, target(tables)) < 1e-12


def test_lenient_inner_levels_leave_the_last_level_its_law() -> None:
    tables = toy_laws(3, 3, LENGTH)
    cascade = ToyCascade(tables, (2, 2), Ratio(2, leniency=2.0))
    assert total_variation(cascade.answers(LENGTH), target(tables)) < 1e-12
    lenient, strict = (nested(tables[:2], Ratio(edges, 2.0))(()) for edges in (2, 1))
    assert torch.equal(strict, tables[1][()].chances)
    q, p = tables[0][()].chances, tables[1][()].chances
    keep = (2.0 * p / q).clamp(max=1.0)  # as published: the lenient test, then the plain residual
    published = q * keep + (1.0 - (q * keep).sum()) * ratio.residual(p, q)
    assert torch.allclose(lenient, published, atol=1e-15) and not torch.allclose(lenient, p, atol=1e-3)
    assert torch.allclose(ratio_test(q, lenient).keep, keep, atol=1e-12)


class Resampling(Rejection):
    """Wrong: corrections of an inner level are drawn from its own law (as released by TriForce)."""

    def settle(self, level: int, seed: int, claims: Any, *rest: Any) -> tuple[int, int | None]:
        with pytest.MonkeyPatch.context() as patch:
            if level == 1:
                patch.setattr(ratio, "residual", lambda p, q: p)
            return super().settle(level, seed, claims, *rest)


class OldClaims(Rejection):
    """Wrong: what the mid level kept still carries the law that the light one drew it from."""

    def settle(self, level: int, seed: int, claims: Any, *rest: Any) -> tuple[int, int | None]:
        settled = super().settle(level, seed, claims, *rest)
        if level == 1:
            for (k, position), law in list(claims.items()):
                if k == 0:
                    claims[1, position] = law
        return settled


def unsure(live: Any, base: list, said: list, least: float) -> list[bool]:
    """Whether each drafted token had less than that chance."""
    return [float(live.claims[0, len(base) + i].chances[token]) < least for i, (token, _) in enumerate(said)]


def drop_unsure(engine: Any) -> None:
    """Wrong: the drafter drops a token that it drew and finds improbable."""
    propose = engine._propose

    def dropping(k: int, rows: list, bases: list, wants: list) -> list:
        out = propose(k, rows, bases, wants)
        if k == 0:
            (live,), (base,) = rows, bases
            doubts = unsure(live, base, out[0], 0.3)
            out[0] = out[0][: doubts.index(True)] if True in doubts else out[0]
        return out

    engine._propose = dropping


def route_on_tokens(engine: Any) -> None:
    """Wrong: drafts go past the mid level where the tokens that were drawn look good."""
    propose = engine._propose

    def routing(k: int, rows: list, bases: list, wants: list) -> list:
        if k != 1:
            return propose(k, rows, bases, wants)
        (live,), (base,) = rows, bases
        drafts = propose(0, rows, bases, [max(1, wants[0] - 1)])
        if not any(unsure(live, base, drafts[0], 0.35)):
            for i in range(len(drafts[0])):
                live.claims[1, len(base) + i] = live.claims[0, len(base) + i]
            return drafts
        engine._propose = lambda *_: drafts
        reviewed = engine._advance(1, rows, bases, [len(drafts[0]) + 1])
        engine._propose = routing
        return reviewed

    engine._propose = routing


def biased(variant: str) -> list[float]:
    """Total variation between a wrong variant and the target, per toy."""
    found = []
    for seed in SEEDS:
        tables = toy_laws(seed, 3, LENGTH + 2)  # a wrong variant may draft beyond the end
        cascade = ToyCascade(tables, (2, 2), Ratio(2))
        kinds = {"resampling": Resampling, "old claims": OldClaims}
        if variant in kinds:
            acceptance = kinds[variant]("toy", Ratio(2))
            acceptance.chance = cascade.fork  # type: ignore[assignment]
            cascade.engine.acceptance = acceptance
        else:
            {"dropping": drop_unsure, "routing": route_on_tokens}[variant](cascade.engine)
        answers = cascade.answers(LENGTH)
        assert sum(answers.values()) == pytest.approx(1.0, abs=1e-12)
        found.append(total_variation(answers, target(tables)))
    return found


@pytest.mark.parametrize("variant", ["resampling", "old claims", "dropping", "routing"])
def test_a_wrong_variant_is_seen_to_be_biased(variant: str) -> None:
    """Means over these toys: .070, .153, .065, .063."""
    found = biased(variant)
    assert sum(found) / len(found) > 0.05 and min(found) > 1e-3


LOSSY_CASCADES = {
    "chow": LossyCascade(chow, 0.5),
    "diff": LossyCascade(diff, 0.1),
    "opt": LossyCascade(opt, 0.3),
    "token": LossyCascadeToken(0.4),
}


@pytest.mark.parametrize("gammas", [(1,), (3,), (2, 2), (3, 1)])
@pytest.mark.parametrize("name", LOSSY_CASCADES)
def test_a_speculative_cascade_gives_its_mixture_exactly(name: str, gammas: tuple[int, ...]) -> None:
    tables, rule = toy_laws(4, len(gammas) + 1, LENGTH), LOSSY_CASCADES[name]
    answers = ToyCascade(tables, gammas, rule).answers(LENGTH)
    assert total_variation(answers, chain(nested(tables, rule), LENGTH)) < 1e-12
    assert rule.lossy and total_variation(answers, target(tables)) > 1e-3
    assert total_variation(answers, target(tables[:1])) > 1e-3  # it defers now and then


def test_deferral_asks_what_the_papers_ask() -> None:
    q, p = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.1, 0.7, 0.2]).double()  # TV 0.4
    assert [chow(q, p, alpha) for alpha in (0.45, 0.55)] == [True, False]
    assert [diff(q, p, alpha) for alpha in (0.15, 0.25)] == [True, False]
    assert [opt(q, p, alpha) for alpha in (0.45, 0.55)] == [True, False]
    mixed = LossyCascadeToken(0.5).target(0, Law(q, q), Law(p, p)).chances  # only token 1 has .35 of p or more
    assert mixed.tolist() == pytest.approx([0.7 * 0.1, 0.3 + 0.7 * 0.7, 0.7 * 0.2])


def test_at_temperature_0_deferral_still_asks_how_sure_the_models_are() -> None:
    light, heavy = ([[2.0, 1.9, 0.0]], [[0.0, 5.0, 0.0]])
    q, p = (laws(torch.tensor(logits), SamplingParams())[0] for logits in (light, heavy))
    assert [law.chances.argmax().item() for law in (q, p)] == [0, 1] and q.chances.max() == 1.0
    assert LossyCascade(diff, 0.1).target(0, q, p) is p
    assert LossyCascade(diff, 0.1).target(0, p, q) is p


@pytest.mark.parametrize("rule", [LossyFuzzy([0.05, 0.3]), LossyTypical(0.3, 0.6)], ids=["fuzzy", "typical"])
def test_a_lossy_rule_gives_the_law_it_names(rule: Rule) -> None:
    """The first token has drafts of every level; what follows a whole block is the verifier's own."""
    biases = []
    for seed in SEEDS:
        tables = toy_laws(seed, 3, LENGTH)
        answers = ToyCascade(tables, (2, 2), rule).answers(LENGTH)
        first = torch.tensor([sum(p for answer, p in answers.items() if answer[0] == v) for v in range(VOCAB)])
        assert torch.allclose(first.double(), nested(tables, rule)(()), atol=1e-7)
        biases.append(total_variation(answers, target(tables)))
    assert rule.lossy and max(biases) > 0.01


def test_fuzzy_keeps_every_draft_of_a_near_drafter_and_none_for_free_of_a_far_one() -> None:
    q, p = Law(*[random_law(0, 0, ())] * 2), Law(*[random_law(0, 1, ())] * 2)
    distance = divergence(p.own, q.own)
    by_hand = sum(float(a) * float((a / b).log()) for a, b in zip(p.own, q.own, strict=True))
    assert distance == pytest.approx(by_hand) and distance > 0.01
    near, far = (LossyFuzzy([distance + step]).target(0, q, p) for step in (1e-9, -1e-9))
    assert torch.equal(near.chances, q.chances) and torch.equal(far.chances, p.chances)
    assert near.own is far.own is p.own  # the next verifier compares itself with this one, not with the drafter
    assert divergence(p.own, torch.tensor([1.0, 0.0, 0.0]).double()) == float("inf")


def test_typical_acceptance_keeps_what_medusa_keeps() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.07, 0.03]).double(), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    limit = min(0.09, 0.3 * float(torch.exp(-torch.special.entr(p).sum())))
    assert limit == 0.09 and is_typical(p, 0.09, 0.3).tolist() == [True, True, False, False]
    flat = torch.full((4,), 0.25).double()
    assert is_typical(flat, 0.9, 0.3).all() and not is_typical(flat, 0.9, 1.0).any()  # limits .075 and .25
    law = LossyTypical(0.09, 0.3).target(0, Law(q, q), Law(p, p)).chances
    published = torch.tensor([0.1, 0.2, 0.0, 0.0]).double() + 0.7 * p  # kept, and what is drawn for the rest
    assert torch.allclose(law, published)
    assert ratio_test(q, law).keep[:2].tolist() == [1.0, 1.0]
    certain = torch.tensor([0.0, 1.0, 0.0, 0.0]).double()
    assert torch.equal(
        LossyTypical(0.09, 0.3).target(0, Law(q, q), Law(certain, certain)).chances[[0, 2, 3]], q[:0].new_zeros(3)
    )


class DrawnDecoder(TableDecoder):
    """A table whose choices are draws, as a model's are."""

    def _run(self, plans: Any, groups: Any) -> list[list[int]]:
        super()._run(plans, groups)
        out = []
        for plan in plans:
            where, told = list(plan.row.laws), list(plan.row.laws.values())
            logits = torch.stack([law.chances for law in told]).log()
            out.append(choose(logits, [plan.row.sampling] * len(where), where))
        return out


def chi_square_of(chance: Chance, draws: int = 600) -> float:
    """Of sampled answers of three tokens and three levels against the target's law; 26 degrees of freedom."""
    tables = toy_laws(1, 3, LENGTH)
    cascade = ToyCascade(tables, (2, 2), Ratio(2))
    for level, table in zip(cascade.engine.levels, tables, strict=True):
        level.decoder = DrawnDecoder(table)
    cascade.engine.acceptance.chance = chance  # type: ignore[union-attr]
    counts: Answers = {}
    for seed in range(draws):
        answer = cascade.sampled(LENGTH, seed)
        counts[answer] = counts.get(answer, 0) + 1
    return sum((counts.get(a, 0) - draws * p) ** 2 / (draws * p) for a, p in target(tables).items())


def test_sampled_answers_have_the_targets_law() -> None:
    """The limit is p = 1e-5; deterministic, since seeds are counted."""
    assert chi_square_of(Chance()) < 62


def test_noise_shared_between_draft_and_residual_is_seen_to_be_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    from cascade_runtime.decoding.acceptance import chance

    monkeypatch.setattr(chance, "derived_seed", lambda seed, purpose: seed)
    assert chi_square_of(Chance()) > 100


def test_chance_is_a_function_of_seed_position_and_level() -> None:
    law, chance = torch.full((50,), 0.02).double(), Chance()
    places = [(seed, position, level) for seed in (0, 2**64 - 1) for position in range(20) for level in (1, 2)]
    drawn = [chance.other(law, *place) for place in places]
    assert drawn == [Chance().other(law, *place) for place in reversed(places)][::-1]
    assert len(set(drawn)) > 25
    coins = [sum(chance.keeps(0.3, seed, position, 1) for seed in range(500)) for position in range(4)]
    assert all(100 < heads < 200 for heads in coins) and len(set(coins)) > 1  # 150 +- 10
    assert chance.keeps(1.0, 1, 1, 1) and not chance.keeps(0.0, 1, 1, 1)
