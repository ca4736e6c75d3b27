"""Questions about one recording prefill it once, whenever they come, and what they are answered does not change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from threaded_pipeline import threaded_pipeline
from toy_family import toy_events, toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.row import Extension, Row
from cascade_runtime.emulation.loading import load_level
from cascade_runtime.engine import Engine
from cascade_runtime.vision.features import VisualFeatures

QUESTIONS = ("What moves?", "Where is the activity?", "How many events are there?")
GREEDY = SamplingParams(max_tokens=16)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def seen(family: Path) -> list[VisualFeatures]:
    engine = Engine.load(toy_recipe(family, []))
    return [engine.front_end.see(toy_events(seed)).for_target for seed in range(3)]


@pytest.fixture
def level(family: Path) -> Iterator[Level]:
    yield load_level(toy_recipe(family, []), 0)


def decode(level: Level, rows: list[Row], steps: int = 8) -> list[list[int]]:
    """So many greedy steps of all rows together; one that was prefilled goes on where it stands."""
    said: list[list[int]] = [[] for _ in rows]
    for _ in range(steps):
        for tokens, chosen in zip(said, level.decoder.extend([*map(Extension, rows, said)]), strict=True):
            tokens += chosen
    return said


def apart(family: Path, question: str, features: VisualFeatures) -> list[int]:
    """What a decoder that has seen nothing else says."""
    alone = load_level(toy_recipe(family, []), 0)
    return decode(alone, [alone.admit(question, features, GREEDY)])[0]


def test_a_prefix_is_the_recording_and_its_length_ends_before_the_question(
    level: Level, seen: list[VisualFeatures]
) -> None:
    prompts = [level.prompt(question, features) for features in seen[:2] for question in QUESTIONS]
    assert len({prompt.prefix for prompt in prompts}) == 2
    first, second = prompts[:2]
    n = first.prefix_length
    assert 0 < n < min(len(first), len(second))
    assert torch.equal(first.embeds[:n], second.embeds[:n]) and not torch.equal(
        first.embeds[n], prompts[3].embeds[n - 1]
    )
    assert not torch.equal(first.embeds[:n], prompts[3].embeds[:n])


@pytest.mark.parametrize("when", ["while it runs", "after it ended", "before it began"])
def test_a_second_question_feeds_only_itself_and_says_what_it_says_alone(
    family: Path, level: Level, seen: list[VisualFeatures], when: str
) -> None:
    wanted = [apart(family, question, seen[0]) for question in QUESTIONS[:2]]
    first = level.admit(QUESTIONS[0], seen[0], GREEDY)
    second = level.admit(QUESTIONS[1], seen[0], GREEDY) if when == "before it began" else None
    assert decode(level, [first]) == wanted[:1]
    if when == "after it ended":
        level.decoder.release(first)
    second = second or level.admit(QUESTIONS[1], seen[0], GREEDY)
    assert second.prompt_left == len(second.prompt) - second.prompt.prefix_length
    fed = level.decoder.tokens_fed
    assert decode(level, [second]) == wanted[1:]
    assert level.decoder.tokens_fed - fed == second.prompt_left + len(second.prompt) - second.prompt.prefix_length + 7
    assert level.decoder.tokens_shared == second.prompt.prefix_length


def test_another_recording_in_the_slot_ends_it(family: Path, level: Level, seen: list[VisualFeatures]) -> None:
    for features in (seen[0], seen[1], seen[0]):  # one after the other, in one slot
        row = level.admit(QUESTIONS[0], features, GREEDY)
        assert row.held == 0
        assert decode(level, [row]) == [apart(family, QUESTIONS[0], features)]
        level.decoder.release(row)
    assert level.decoder.tokens_shared == 0


def test_slots_stay_together_however_long_prefixes_are_remembered(level: Level, seen: list[VisualFeatures]) -> None:
    rows = [level.admit(QUESTIONS[0], features, GREEDY) for features in seen]
    assert [row.slot for row in rows] == [0, 1, 2]
    decode(level, rows, 1)
    for row in rows:
        level.decoder.release(row)
    assert level.admit(QUESTIONS[1], seen[2], GREEDY).slot == 2  # where its recording lies already
    assert [level.admit(QUESTIONS[1], features, GREEDY).slot for features in seen[:2]] == [0, 1]


def test_numbers_that_are_not_are_not_shared(family: Path, level: Level, seen: list[VisualFeatures]) -> None:
    wanted = apart(family, QUESTIONS[1], seen[0])
    norm = level.model.language.norm
    kept = norm._weight.clone()
    norm._weight.fill_(float("nan"))
    spoilt = level.admit(QUESTIONS[0], seen[0], GREEDY)
    level.decoder.extend([Extension(spoilt, [])])
    assert spoilt.poisoned
    norm._weight.copy_(kept)
    row = level.admit(QUESTIONS[1], seen[0], GREEDY)
    assert row.held == 0
    assert decode(level, [row]) == [wanted]


def test_sixteen_questions_at_once_prefill_their_recording_once_on_every_stage(family: Path) -> None:
    recipe = toy_recipe(family, ["noisy"], [3], cascade={"slots": 16, "prefill_tokens": 64})
    requests = [
        GenerateRequest(events=toy_events(1), question=question * count, sampling=GREEDY)
        for question in ("What moves? ", "How fast? ")
        for count in range(1, 9)
    ]
    reference = [answer.token_ids for answer in Engine.load(recipe).generate(requests)]  # type: ignore[union-attr]
    with threaded_pipeline(recipe) as controller:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(controller.generate, requests))
        assert [answer.token_ids for answer in answers] == reference
        for stage in controller.language:
            decoder = stage.level.decoder
            assert decoder.tokens_shared > 0


def test_requests_about_few_recordings_are_answered_as_by_a_slot_for_each(family: Path) -> None:
    requests = toy_requests(12, seed=9)
    shared = Engine.load(toy_recipe(family, ["noisy"], [3]))
    together = [answer.token_ids for answer in shared.generate(requests)]  # type: ignore[union-attr]
    assert shared.levels[-1].decoder.tokens_shared > 0
    for request, tokens in zip(requests, together, strict=True):
        (alone,) = Engine.load(toy_recipe(family, ["noisy"], [3])).generate([request])
        assert alone.token_ids == tokens  # type: ignore[union-attr]
