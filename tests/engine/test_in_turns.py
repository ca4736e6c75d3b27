"""Stages that take turns on one device: the engine's tokens, and never two language models at a time."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
from toy_family import toy_events, toy_recipe, toy_requests, write_toy_family

from cascade_runtime import in_turns
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.client import CascadeClient
from cascade_runtime.config import SamplingParams
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError, PromptTooLong
from cascade_runtime.in_turns import InTurns

TURNS = {"loading": "in_turns"}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


def answers(engine: Engine | InTurns, requests: list[GenerateRequest]) -> list[object]:
    done = {index: update for index, update in engine.run(requests) if not isinstance(update, str)}
    return [done[index] for index in range(len(requests))]


@pytest.mark.parametrize("drafters", [[], ["identical"], ["random", "noisy"], ["inverted", "identical"]])
def test_turns_give_the_engines_tokens(family: Path, drafters: list[str]) -> None:
    requests = toy_requests(6, seed=3)
    expected = Engine.load(toy_recipe(family, [])).generate(requests)
    told = answers(InTurns(toy_recipe(family, drafters, cascade=TURNS)), requests)
    assert [a.token_ids for a in told] == [e.token_ids for e in expected]  # type: ignore[attr-defined, union-attr]
    assert [a.text for a in told] == [e.text for e in expected]  # type: ignore[attr-defined, union-attr]
    assert [a.finish_reason for a in told] == [e.finish_reason for e in expected]  # type: ignore[attr-defined, union-attr]


def test_drafts_of_an_equal_model_leave_the_target_one_pass_for_the_window(family: Path) -> None:
    request = GenerateRequest(
        events=toy_events(), question="What?", sampling=SamplingParams(max_tokens=13, ignore_eos=True)
    )
    (told,) = answers(InTurns(toy_recipe(family, ["identical"], cascade=TURNS, event_branch=False)), [request])
    assert isinstance(told, Answer)
    assert (told.target_passes, told.edges[0].num_accepted_tokens) == (1, 12)  # and one of the target's own
    assert [name for name, what, *_ in told.timings.spans if what == "load"] == [
        "encoder",
        "adapter",
        "level0",
        "target",
    ]


def test_at_most_one_model_is_there_at_a_time(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[str, weakref.ref[object]]] = []

    def watched(load, name):  # type: ignore[no-untyped-def]
        def loading(recipe, *args):  # type: ignore[no-untyped-def]
            gc.collect()
            assert [who for who, model in held if model() is not None] == []
            loaded = load(recipe, *args)
            part = {"load_branch": "encoder", "load_verifier": "adapter", "load_level": "model"}[name]
            held.append((name, weakref.ref(getattr(loaded, part))))
            return loaded

        return loading

    for name in ("load_branch", "load_verifier", "load_level"):
        monkeypatch.setattr(in_turns, name, watched(getattr(in_turns, name), name))
    told = answers(InTurns(toy_recipe(family, ["random", "noisy"], cascade=TURNS)), toy_requests(4, seed=1))
    assert all(isinstance(each, Answer) for each in told)
    assert [name for name, _ in held] == ["load_branch", "load_verifier", "load_level", "load_level", "load_level"]
    assert [who for who, model in held if model() is not None] == []  # nothing stays between batches


def test_one_request_fails_alone_and_streams_are_the_targets(family: Path) -> None:
    recipe = toy_recipe(family, ["noisy"], cascade=TURNS)
    with CascadeClient(recipe=recipe) as client:
        told = client.generate([toy_events(1), toy_events(2)], ["What?", "where " * 400], progress=False)
        assert isinstance(told[0], Answer) and isinstance(told[1], PromptTooLong)
        *pieces, answer = client.stream(toy_events(1), "What?")
        assert isinstance(answer, Answer) and "".join(pieces) == answer.text
        assert answer.token_ids == told[0].token_ids


@pytest.mark.parametrize("more", [{"acceptance": "ratio"}, {"loading": "sometimes"}])
def test_what_cannot_take_turns_is_refused(family: Path, more: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"cascade\.loading"):
        toy_recipe(family, ["noisy"], cascade={**TURNS, **more})


def test_a_pipeline_does_not_take_turns(family: Path) -> None:
    with pytest.raises(ConfigError, match="one process only"):
        toy_recipe(family, ["noisy"], cascade=TURNS).check_runs_apart()
