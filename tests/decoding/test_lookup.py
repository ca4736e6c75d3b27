"""A drafter without weights: what it remembers, and that it changes no answer but saves passes when asked again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from threaded_pipeline import threaded_pipeline
from toy_family import toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer
from cascade_runtime.config import load_recipe
from cascade_runtime.decoding.lookup import Memory, begin
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError
from cascade_runtime.planning import load_cluster, plan

ASKED = -7


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """toy: lookup -> target."""
    plain = toy_recipe(write_toy_family(tmp_path_factory.mktemp("toy")), ["noisy"], [6], event_branch=False)
    first, target = plain.stages
    return replace(plain, stages=(replace(first, checkpoint=target.checkpoint, drafter="lookup"), target))


# -- memory --------------------------------------------------------------------------------------------------------


def test_the_longest_words_win_then_the_nearest_source():
    memory = Memory()
    memory.add("other", [ASKED, 1, 2, 3, 4])
    memory.add("mine", [ASKED, 9, 2, 3, 5])
    assert memory.follow("mine", [ASKED, 8, 2, 3]) == 5  # about the same recording
    assert memory.follow("mine", [ASKED, 1, 2, 3]) == 4  # longer, though about another
    assert memory.follow("new", [ASKED, 8, 2, 3]) == 5  # about any: the last
    assert memory.follow("mine", [ASKED, 2, 3, 6, 2, 3]) == 6  # said in this answer already
    assert memory.follow("mine", [ASKED]) == 9
    assert memory.follow("new", [ASKED - 1]) is None
    assert memory.follow("mine", [ASKED, 8, 3]) is None  # one word alone is no reason


def test_what_was_not_seen_for_longest_is_forgotten():
    memory = Memory(most=60)
    for answer in range(20):
        memory.add("r", [ASKED - answer, 100 + answer, 200 + answer, 300 + answer])
    assert len(memory) == 60
    assert memory.follow("r", [ASKED - 19, 119, 219]) == 319
    assert memory.follow("r", [ASKED, 100, 200]) is None


def test_questions_are_told_apart_by_their_words():
    assert begin("What moves?") == begin(" What moves? ") != begin("What stands?")
    assert begin("What moves?") < 0


# -- the cascade ---------------------------------------------------------------------------------------------------


def test_answers_are_the_targets_and_a_second_asking_takes_fewer_passes(recipe):
    requests = toy_requests(12)
    engine = Engine.load(recipe)
    alone = engine.generate([replace(request, speculate=False) for request in requests])
    first, second = engine.generate(requests), engine.generate(requests)
    passes = [0, 0]
    for expected, *got in zip(alone, first, second, strict=True):
        assert isinstance(expected, Answer)
        for turn, answer in enumerate(got):
            assert isinstance(answer, Answer)
            assert answer.token_ids == expected.token_ids
            passes[turn] += answer.target_passes
    tokens = sum(len(answer.token_ids) for answer in first)  # type: ignore[union-attr]
    assert passes[1] < 0.5 * tokens < passes[0] <= tokens
    assert engine.levels[0].decoder.free_slots == recipe.cascade.slots


def test_as_stages_it_learns_what_the_target_confirmed_and_waits_where_it_knows_nothing(recipe):
    requests = [request for request in toy_requests(16) if not request.sampling.stop][:6]
    expected = [answer.token_ids for answer in Engine.load(recipe).generate(requests)]  # type: ignore[union-attr]
    # A target that waits for its drafter: a busy machine is not what is tested.
    policy, deadlines = replace(recipe.policy, mode="lock_step"), replace(recipe.deadlines, upstream_s=5.0)
    patient = replace(recipe, policy=policy, deadlines=deadlines)
    with threaded_pipeline(patient) as pipeline:
        for turn in range(2):
            answers = [pipeline.generate(request) for request in requests]
            assert [answer.token_ids for answer in answers] == expected
            if not turn:
                first = sum(answer.target_passes for answer in answers)
        second = sum(answer.target_passes for answer in answers)
        lookup = pipeline.language[0]
    assert second < 0.7 * first
    assert lookup.level.decoder.free_slots == recipe.cascade.slots


# -- what is refused -------------------------------------------------------------------------------------------------


def test_only_the_lightest_of_several_levels_looks_up():
    with pytest.raises(ConfigError, match=r"heavy\.drafter.*lightest"):
        load_recipe("light_heavy", ["stages.heavy.drafter=lookup"])
    with pytest.raises(ConfigError, match=r"heavy\.drafter.*lightest"):
        load_recipe("heavy", ["stages.heavy.drafter=lookup"])
    with pytest.raises(ConfigError, match=r"stages\.light\.drafter"):
        load_recipe("light_heavy", ["stages.light.drafter=guess"])
    with pytest.raises(ConfigError, match=r"stages\.light\.compile"):
        load_recipe("light_heavy", ["stages.light.drafter=lookup", "stages.light.compile=true"])


def test_a_plan_says_that_it_cannot_know_what_lookup_brings():
    with pytest.raises(ConfigError, match=r"lookup\.drafter.*planned"):
        plan(load_recipe("lookup_heavy"), load_cluster("1x4090"))
