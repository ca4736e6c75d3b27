"""Cascade == autoregressive, token for token: any drafter, depth, batch, block length, temperature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_family import KINDS, toy_events, toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding import decoder
from cascade_runtime.decoding.plan import plan
from cascade_runtime.decoding.row import Extension
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError, InputError, PromptTooLong, StageError

REQUESTS = 16


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def reference(family: Path) -> list[Answer]:
    """The target alone, one request at a time."""
    engine = Engine.load(toy_recipe(family, []))
    answers = [engine.generate([request])[0] for request in toy_requests(REQUESTS)]
    assert all(isinstance(answer, Answer) for answer in answers)
    return answers  # type: ignore[return-value]


def tokens(answers: list) -> list[tuple[int, ...]]:
    assert all(isinstance(answer, Answer) for answer in answers), answers
    return [answer.token_ids for answer in answers]


def test_the_reference_is_the_plain_loop_and_worth_comparing_with(family: Path, reference: list[Answer]) -> None:
    level = Engine.load(toy_recipe(family, [])).levels[0]
    engine = Engine.load(toy_recipe(family, []))
    for request, answer in list(zip(toy_requests(REQUESTS), reference, strict=True))[:6]:
        row = level.admit(request.question, engine.front_end.see(request.events).features[-1], request.sampling)
        said: list[int] = []
        for _ in answer.token_ids:
            said += level.decoder.extend([Extension(row, said)])[0]
        assert tuple(said) == answer.token_ids
        level.decoder.release(row)
    assert len(set(tokens(reference))) > REQUESTS // 2  # answers differ, so that equality means something
    assert {answer.finish_reason for answer in reference} == {"length", "stop"}


def test_choices_come_back_in_the_order_asked_whatever_the_slots(family: Path, reference: list[Answer]) -> None:
    engine = Engine.load(toy_recipe(family, []))
    level, asked = engine.levels[0], []
    for request, answer in zip(toy_requests(3), reference, strict=False):
        row = level.admit(request.question, engine.front_end.see(request.events).features[-1], request.sampling)
        asked.append((Extension(row, [], answer.token_ids[:-1]), list(answer.token_ids)))
    assert len({tuple(said) for _, said in asked}) == 3
    for order in ([0, 1, 2], [2, 0, 1]):
        assert level.decoder.extend([asked[i][0] for i in order]) == [asked[i][1] for i in order]
    for first, second in ((0, 2), (2, 1)):  # slots that are no neighbours, and neighbours the other way about
        (one, said), (two, also) = asked[first], asked[second]
        short = [Extension(one.row, said[:-1]), Extension(two.row, also[:-1])]
        assert level.decoder.extend(short) == [said[-1:], also[-1:]]


@pytest.mark.parametrize("gammas", [(1, 1), (3, 5), (7, 2)])
@pytest.mark.parametrize("light", KINDS[1:])
def test_a_cascade_says_what_its_target_says(
    family: Path, reference: list[Answer], light: str, gammas: tuple[int, int]
) -> None:
    two = Engine.load(toy_recipe(family, [light], gammas[:1]))
    three = Engine.load(toy_recipe(family, [light, "noisy"], gammas))
    for engine in (two, three):
        answers = engine.generate(toy_requests(REQUESTS))  # four rows at a time, raggedly
        assert tokens(answers) == tokens(reference)
        assert [a.finish_reason for a in answers] == [a.finish_reason for a in reference]  # type: ignore[union-attr]
        assert [a.text for a in answers] == [a.text for a in reference]  # type: ignore[union-attr]
        assert all(level.decoder.free_slots == 4 for level in engine.levels)
    edges = [edge for answer in answers for edge in answer.edges]  # type: ignore[union-attr]
    accepted, drafted = sum(e.num_accepted_tokens for e in edges), sum(e.num_draft_tokens for e in edges)
    assert 0 < accepted < drafted or (light == "identical" and accepted == drafted)


def test_four_levels_of_wrong_drafters(family: Path, reference: list[Answer]) -> None:
    engine = Engine.load(toy_recipe(family, ["random", "inverted", "noisy"], [2, 3, 4]))
    assert tokens(engine.generate(toy_requests(REQUESTS))) == tokens(reference)


def test_an_identical_drafter_is_always_accepted_and_saves_passes(family: Path, reference: list[Answer]) -> None:
    engine = Engine.load(toy_recipe(family, ["identical"], [3]))
    for answer, alone in zip(engine.generate(toy_requests(REQUESTS)), reference, strict=True):
        assert isinstance(answer, Answer) and answer.token_ids == alone.token_ids
        (edge,) = answer.edges
        assert edge.num_draft_tokens == edge.num_accepted_tokens
        assert answer.target_passes == -(-len(answer.token_ids) // 4)
        assert alone.target_passes == len(alone.token_ids)
        assert set(answer.produced_by[3::4]) <= {"target"}  # every fourth token is the target's own


def test_wrong_ways_to_verify_are_seen(family: Path, reference: list[Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: each of these must give other answers, or the comparison above proves nothing."""
    engine = Engine.load(toy_recipe(family, ["noisy"], [3]))
    with monkeypatch.context() as patch:

        def without_rollback(extension: Extension, cache: object) -> object:
            made = plan(extension, cache)
            row = made.row
            if made.start < len(row.prompt) + len(extension.prefix) - 1:
                object.__setattr__(made, "start", min(made.start + 1, len(row.prompt) + len(extension.prefix) - 1))
            return made

        patch.setattr(decoder, "plan", without_rollback)
        assert tokens(engine.generate(toy_requests(REQUESTS))) != tokens(reference)

    engine = Engine.load(toy_recipe(family, ["noisy"], [3]))
    engine._keep = lambda k, one, proposal, choices: [  # type: ignore[method-assign]
        *((token, 3) for token, _ in proposal.tokens),
        (choices[len(proposal.tokens)], 2),
    ]
    assert tokens(engine.generate(toy_requests(REQUESTS))) != tokens(reference)


def test_a_stage_with_non_finite_weights_fails_alone(family: Path, reference: list[Answer]) -> None:
    engine = Engine.load(toy_recipe(family, ["noisy", "identical"], [2, 3]))
    with torch.no_grad():
        engine.levels[0].model.language.norm._weight.fill_(float("nan"))
    assert tokens(engine.generate(toy_requests(REQUESTS))) == tokens(reference)
    with torch.no_grad():
        engine.levels[-1].model.language.norm._weight.fill_(float("inf"))
    failed = engine.generate(toy_requests(2))
    assert all(isinstance(error, StageError) and "not finite" in str(error) for error in failed)
    assert all(level.decoder.free_slots == 4 for level in engine.levels)


def poison_embedding(level: Any, never: set[int]) -> None:
    """From now on the level's numbers break when it is fed a token that is not in `never`."""
    embed = level.model.language.embed

    def poisoned(ids: list[int]) -> torch.Tensor:
        embeds = embed(ids).clone()
        for index, token in enumerate(ids):
            if token not in never:
                embeds.view(-1, embeds.shape[-1])[index] = float("nan")
        return embeds

    level.model.language.embed = poisoned


def test_a_draft_that_breaks_the_targets_numbers_costs_time_and_no_token(family: Path, reference: list[Answer]) -> None:
    requests, alone = toy_requests(REQUESTS), Engine.load(toy_recipe(family, []))
    said = {token for answer in reference for token in answer.token_ids}
    prompts = [alone.levels[0].model.prompts.build(r.question, num_visual=None, frames=2) for r in requests]
    said |= {int(token) for prompt in prompts for token in prompt.input_ids}
    engine = Engine.load(toy_recipe(family, ["random"], [3]))
    poison_embedding(engine.levels[-1], said)
    drafted = engine.levels[0].decoder.extend
    proposed: set[int] = set()

    def watched(extensions: Any) -> Any:
        choices = drafted(extensions)
        proposed.update(token for row in choices for token in row)
        return choices

    engine.levels[0].decoder.extend = watched  # type: ignore[method-assign]
    assert tokens(engine.generate(requests)) == tokens(reference)
    assert proposed - said  # tokens that break the target were drafted


def test_in_strict_mode_a_broken_event_branch_is_a_note(family: Path, reference: list[Answer]) -> None:
    engine = Engine.load(toy_recipe(family, ["noisy"]))
    with torch.no_grad():
        engine.front_end.verifier.adapter.skip.weight.fill_(float("nan"))  # type: ignore[union-attr]
    answers = engine.generate(toy_requests(3))
    assert tokens(answers) == tokens(reference[:3])
    assert all("without aligned features" in answer.notes[0] for answer in answers)  # type: ignore[union-attr]


def test_a_request_that_cannot_be_served_harms_no_other(family: Path, reference: list[Answer]) -> None:
    engine = Engine.load(toy_recipe(family, ["noisy"]))
    good = toy_requests(2)
    too_long = GenerateRequest(events=toy_events(), question="where " * 400)
    answers = engine.generate([good[0], too_long, good[1]])
    assert isinstance(answers[1], PromptTooLong)
    assert tokens([answers[0], answers[2]]) == tokens(reference[:2])


def test_requests_are_refused_by_field() -> None:
    for change, field in (
        ({"question": " "}, "question"),
        ({"question": "x" * 9000}, "question"),
        ({"request_id": "a/b"}, "request_id"),
        ({"events": toy_events(count=0)}, "events"),
    ):
        with pytest.raises(InputError) as error:
            GenerateRequest(**{"events": toy_events(), "question": "What?", **change})
        assert error.value.field == field


def test_levels_with_different_tokenizers_are_refused(family: Path, tmp_path: Path) -> None:
    from cascade_runtime.models.family import build_model, build_tokenizer, save_model

    other = build_tokenizer(["entirely other words, spelled otherwise"] * 4, 300)
    save_model(build_model("light", other), other, tmp_path / "other")
    recipe = toy_recipe(family, [str(tmp_path / "other")])
    with pytest.raises(ConfigError, match="tokenizer"):
        Engine.load(recipe)


def test_streaming_yields_the_text_in_pieces(family: Path) -> None:
    engine = Engine.load(toy_recipe(family, ["noisy"]))
    request = GenerateRequest(
        events=toy_events(), question="What?", sampling=SamplingParams(max_tokens=20, ignore_eos=True)
    )
    pieces, answer = [], None
    for _, update in engine.run([request]):
        if isinstance(update, str):
            pieces.append(update)
        else:
            answer = update
    assert isinstance(answer, Answer) and len(pieces) == answer.target_passes > 1
    assert "".join(pieces) == "".join(answer.pieces) == answer.text
