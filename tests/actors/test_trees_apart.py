"""Trees and heads in a pipeline: the engine's tokens, whatever becomes of drafters and messages, and all slots back."""

from __future__ import annotations

import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_pipeline import ask_all, long_request, slots_are_back, until
from threaded_pipeline import threaded_pipeline
from toy_family import toy_events, toy_recipe, toy_requests, write_toy_family

from actors.neighbour import Neighbour
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams, TreeConfig, load_recipe
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError, StageError
from cascade_runtime.messages import DraftBlock

SYSTEMS = Path(__file__).resolve().parents[2] / "benchmarks/recipes/systems"
STATIC = TreeConfig(kind="static", widths=[3, 2], depth=4, nodes=20)
EAGLE = TreeConfig(kind="eagle2", width=3, depth=4, nodes=14)
SSD = TreeConfig(kind="static", widths=[1], depth=4, nodes=4, outcomes=8)
DUO = TreeConfig(kind="duo", width=3, depth=3, nodes=9, outcomes=1)
OPT = TreeConfig(kind="opt", width=3, depth=6, nodes=14, threshold=0.1)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


def requests(count: int = 10) -> list[GenerateRequest]:
    """Every other one greedy, the others at T = .8, some with a stop string; ends of sequence fall where they fall."""
    mixed, warmth = toy_requests(count, seed=3), (0.0, 0.8)
    return [
        replace(each, sampling=replace(each.sampling, temperature=warmth[at % 2])) for at, each in enumerate(mixed)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def reference(family: Path) -> list[tuple[int, ...]]:
    """The target alone, by the engine."""
    answers = Engine.load(toy_recipe(family, [])).generate(requests())
    return [answer.token_ids for answer in answers]  # type: ignore[union-attr]


def with_tree(family: Path, drafters: list[str], tree: TreeConfig, upstream_s: float = 0.5, **tables: Any) -> Recipe:
    """upstream_s: a tree is worth a wait, however busy this machine is."""
    deadlines = {"start_s": 300.0, "upstream_s": upstream_s}
    return replace(toy_recipe(family, drafters, deadlines=deadlines, **tables), tree=tree)


# -- trees -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "tree"),
    [(2, STATIC), (2, OPT), (3, EAGLE), (3, OPT), (2, SSD), (3, SSD), (2, DUO), (2, replace(EAGLE, outcomes=5))],
    ids=lambda value: getattr(value, "kind", value),
)
def test_a_pipeline_with_trees_says_what_its_target_says(
    family: Path, reference: list[tuple[int, ...]], levels: int, tree: TreeConfig
) -> None:
    with threaded_pipeline(with_tree(family, ["noisy"] * (levels - 1), tree)) as controller:
        answers = ask_all(controller, requests())
        assert [answer.token_ids for answer in answers] == reference
        assert slots_are_back(controller)
        edges = [answer.edges[0] for answer in answers]
        drafted, accepted = sum(e.num_draft_tokens for e in edges), sum(e.num_accepted_tokens for e in edges)
        assert drafted >= accepted > 0.1 * drafted  # two levels of the same weights agree
        assert all(stage.stats()["refused_messages"] == 0 for stage in controller.language)


@pytest.mark.parametrize("mode", ["adaptive", "lock_step"])
def test_other_policies_say_the_same(family: Path, reference: list[tuple[int, ...]], mode: str) -> None:
    recipe = with_tree(family, ["noisy", "noisy"], EAGLE, policy={"mode": mode}, cascade={"prefill_tokens": 16})
    with threaded_pipeline(recipe) as controller:
        assert [answer.token_ids for answer in ask_all(controller, requests())] == reference
        assert slots_are_back(controller)


@pytest.mark.parametrize(("tree", "drafter"), [(SSD, "noisy"), (DUO, "identical")], ids=["ssd", "duodecoding"])
def test_what_is_foreseen_comes_true_and_costs_no_pass_of_the_target(
    family: Path, tree: TreeConfig, drafter: str
) -> None:
    asked = [replace(each, sampling=replace(each.sampling, stop=(), max_tokens=24)) for each in requests(8)]
    passes, drafted = dict[int, int](), dict[int, int]()
    for outcomes in (0, tree.outcomes):
        recipe = with_tree(family, [drafter], replace(tree, outcomes=outcomes), upstream_s=5.0)
        with threaded_pipeline(recipe) as controller:
            light, verifies = controller.language[0], controller.language[-1].passes
            verifies.run = when_foreseen(light.passes, verifies.run)
            answers = ask_all(controller, asked)
            passes[outcomes] = sum(answer.target_passes for answer in answers)
            drafted[outcomes] = sum(len(answer.token_ids) for answer in answers)
            foresight = light.passes.foresight
            until(lambda light=light: not light.rows)
            assert not foresight._waiting  # whoever has ended is forgotten
            if outcomes:
                assert foresight.hits > 20 and (foresight.misses or drafter == "identical")
            else:
                assert foresight.hits == 0
    assert drafted[0] == drafted[tree.outcomes]
    assert abs(passes[0] - passes[tree.outcomes]) <= 0.1 * passes[0]


@pytest.mark.parametrize("tree", [SSD, DUO], ids=["ssd", "duodecoding"])
def test_a_drafter_that_learns_what_it_saw_was_wrong_foresees_anew(family: Path, tree: TreeConfig) -> None:
    """What was foreseen on features that the gate refuses must not be drafts on those that it sends instead."""
    gate = {"policy": "full", "accept": 1.0, "reject": -1.0}  # refused, all of them
    recipe = with_tree(family, ["noisy"], tree, gate=gate, cascade={"mode": "aligned"})
    expected = [each.token_ids for each in Engine.load(recipe).generate(requests(6))]  # type: ignore[union-attr]
    with threaded_pipeline(recipe) as controller:
        light, adapter = controller.language[0], controller.stages["adapter"].stage
        foresight, decide, revise, waited = (
            light.passes.foresight,
            adapter.decide,
            light._revise,
            list[tuple[bool, bool]](),
        )

        def late(*args: Any) -> Any:
            until(lambda: len(foresight._waiting) > 0, 0.3)  # the drafter is well ahead by then
            return decide(*args)

        def revised(handle: int, features: Any) -> None:
            before = handle in foresight._waiting
            revise(handle, features)
            waited.append((before, handle in foresight._waiting))

        adapter.decide, light._revise = late, revised
        answers = ask_all(controller, requests(6))
        assert [answer.token_ids for answer in answers] == expected
        assert all(set(answer.gate["verdicts"]) == {"dense"} for answer in answers)
        assert (True, False) in waited and not any(after for _, after in waited) and len(waited) == 6
        assert slots_are_back(controller)


def when_foreseen(light: Any, run: Any) -> Any:
    """A target that is slow: its pass begins when all that is worth foreseeing has been foreseen."""
    planted, foresee, idle = light.foresight.planted, light.foresee, threading.Event()

    def plant(*args: Any) -> None:
        idle.clear()
        planted(*args)

    def look_ahead() -> list[int]:
        if not (looked := foresee()):
            idle.set()
        return looked

    def wait_and_run(*args: Any) -> Any:
        idle.wait(1.0)
        return run(*args)

    light.foresight.planted, light.foresee = plant, look_ahead
    return wait_and_run


def test_what_was_foreseen_with_numbers_that_are_not_finite_is_not_drafted(family: Path) -> None:
    asked = [replace(each, sampling=replace(each.sampling, stop=(), max_tokens=24)) for each in requests(4)]
    with threaded_pipeline(with_tree(family, ["identical"], DUO, upstream_s=5.0)) as controller:
        light, verifies = controller.language[0], controller.language[-1].passes
        verifies.run = when_foreseen(light.passes, verifies.run)
        came_true, spoilt = light.passes.foresight.came_true, list[int]()

        def spoils(*args: Any) -> Any:
            begun = came_true(*args)
            if begun is not None and not spoilt:
                spoilt.append(1)
                begun.row.poisoned = True  # as a pass ahead would that ended in infinities
            return begun

        light.passes.foresight.came_true = spoils
        answers = ask_all(controller, asked)
        assert spoilt and [len(answer.token_ids) for answer in answers] == [24] * 4
        assert min(answer.edges[0].num_accepted_tokens for answer in answers) > 10  # the row goes on with its drafter


def test_a_failure_while_drafting_ahead_ends_nothing(family: Path, reference: list[tuple[int, ...]]) -> None:
    with threaded_pipeline(with_tree(family, ["noisy"], SSD)) as controller:
        light, failed = controller.language[0].passes, list[int]()
        look = light.foresight._decoder.look

        def broken(extensions: Any) -> Any:
            if len(extensions[0].drafts) > len(SSD.widths):  # not the first token of a tree
                failed.append(1)
                raise RuntimeError("out of memory")
            return look(extensions)

        light.foresight._decoder = SimpleNamespace(look=broken, room=light._decoder.room)
        assert [answer.token_ids for answer in ask_all(controller, requests())] == reference
        assert failed and slots_are_back(controller)


def test_siblings_save_passes_as_in_one_process(family: Path) -> None:
    asked = [replace(each, sampling=replace(each.sampling, stop=(), max_tokens=24)) for each in requests(8)]
    passes = dict[str, int]()
    for name, tree in (("chain", replace(STATIC, widths=[1])), ("tree", EAGLE)):
        with threaded_pipeline(with_tree(family, ["noisy"], tree, upstream_s=5.0)) as controller:
            passes[name] = sum(answer.target_passes for answer in ask_all(controller, asked))
    answers = Engine.load(with_tree(family, ["noisy"], EAGLE)).generate(asked)
    within = sum(answer.target_passes for answer in answers if isinstance(answer, Answer))
    assert passes["tree"] < 0.95 * passes["chain"]
    assert within <= passes["tree"] <= within + len(asked)  # a prompt waits for no tree


def test_an_end_of_sequence_in_a_tree_ends_the_answer(family: Path) -> None:
    with threaded_pipeline(with_tree(family, ["identical"], EAGLE)) as controller:
        alone = controller.generate(long_request(sampling=SamplingParams(max_tokens=20, ignore_eos=True)))
        end = alone.token_ids[9]
        controller.ends = controller.language[-1].level.model.language.eos_token_ids = (end,)
        controller.language[0].passes._grower._ends = frozenset()  # it drafts beyond the end
        controller.language[0].level.model.language.eos_token_ids = ()
        answer = controller.generate(long_request(sampling=SamplingParams(max_tokens=20)))
        assert answer.token_ids == alone.token_ids[: alone.token_ids.index(end) + 1]
        assert answer.finish_reason == "stop" and slots_are_back(controller)


class BadLinks:
    """Loses, repeats and delays what neighbours tell each other, trees in turns. trees: what became of how many."""

    def __init__(self, seed: int) -> None:
        self.rng, self.lock = random.Random(seed), threading.Lock()
        self.late: list[tuple[Any, Any]] = []
        self.trees = dict.fromkeys(("late", "repeated", "lost"), 0)
        self.turns = itertools.cycle(self.trees)
        self.tell = Neighbour.tell

    def __call__(self, neighbour: Any, message: Any) -> None:
        with self.lock:
            fate = self.rng.choice(("lost", "repeated", "late", "whole", "whole"))
            if isinstance(message, DraftBlock) and message.parents is not None:
                fate = next(self.turns)
                self.trees[fate] += 1
            due = [each for each in self.late if each[0] is neighbour]
            self.late = [each for each in self.late if each[0] is not neighbour]
            if fate == "late":
                self.late.append((neighbour, message))
        for _ in range({"lost": 0, "late": 0, "repeated": 2, "whole": 1}[fate]):
            self.tell(neighbour, message)
        for _, old in due:  # after what came later
            self.tell(neighbour, old)


@pytest.mark.parametrize("drafters", [["noisy"], ["noisy", "noisy"]], ids=["two levels", "three levels"])
def test_lost_late_and_repeated_trees_change_nothing(
    family: Path, reference: list[tuple[int, ...]], drafters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    links = BadLinks(5)
    monkeypatch.setattr(Neighbour, "tell", lambda neighbour, message: links(neighbour, message))
    tree = replace(EAGLE, outcomes=4 if len(drafters) == 1 else 0)
    with threaded_pipeline(with_tree(family, drafters, tree, upstream_s=0.005)) as controller:
        assert [answer.token_ids for answer in ask_all(controller, requests())] == reference
        assert all(links.trees.values())
        assert slots_are_back(controller)


@pytest.mark.parametrize("dies", [0, 1])
def test_answers_survive_a_dead_drafter_of_trees(family: Path, reference: list[tuple[int, ...]], dies: int) -> None:
    with threaded_pipeline(with_tree(family, ["noisy", "noisy"], OPT)) as controller:
        before = ask_all(controller, requests()[:6])
        with ThreadPoolExecutor(10) as pool:
            after = [pool.submit(controller.generate, each) for each in requests()[6:]]
            until(lambda: bool(controller.language[2].rows))
            controller.language[dies].stop()
            answers = [*before, *(each.result(60) for each in after)]
        assert [answer.token_ids for answer in answers] == reference
        gone = controller.language[dies]
        assert until(lambda: all(not stage.rows for stage in controller.language if stage is not gone))


def test_answers_survive_a_drafter_of_trees_whose_numbers_break(
    family: Path, reference: list[tuple[int, ...]]
) -> None:  # fmt: skip
    with threaded_pipeline(with_tree(family, ["noisy"], EAGLE, upstream_s=0.01)) as controller:
        with torch.no_grad():
            controller.language[0].level.model.language.norm._weight.fill_(float("nan"))
        assert [answer.token_ids for answer in ask_all(controller, requests()[:8])] == reference[:8]
        assert slots_are_back(controller)


def test_a_stuck_drafter_of_trees_holds_nothing_back(family: Path, reference: list[tuple[int, ...]]) -> None:
    with threaded_pipeline(with_tree(family, ["noisy"], EAGLE, upstream_s=0.01)) as controller:
        stuck, grow = threading.Event(), controller.language[0].passes.run
        controller.language[0].passes.run = lambda *args: stuck.wait(60) and grow(*args)
        start = time.monotonic()
        answers = ask_all(controller, requests()[:4])
        assert time.monotonic() - start < 30  # it would be a minute at least
        stuck.set()
        assert [answer.token_ids for answer in answers] == reference[:4]
        assert slots_are_back(controller)


def test_a_cancelled_request_leaves_no_tree_behind(family: Path, reference: list[tuple[int, ...]]) -> None:
    with threaded_pipeline(with_tree(family, ["noisy", "noisy"], EAGLE)) as controller, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(controller.generate, long_request(request_id=f"long{k}")) for k in range(4)]
        assert until(lambda: len(controller.language[0].rows) == 4 and controller.language[2].stats()["passes"] > 4)
        assert all(controller.cancel(f"long{k}") for k in range(4))
        assert all(isinstance(each.exception(20), StageError) for each in asked)
        assert slots_are_back(controller)
        assert controller.generate(requests()[0]).token_ids == reference[0]


# -- heads beside the target -----------------------------------------------------------------------------------------


HEAVY = [
    GenerateRequest(
        events=toy_events(1, count=800),
        question="What is happening in this recording?",
        sampling=SamplingParams(temperature=0.8 * (at % 2), seed=at, max_tokens=16),
    )
    for at in range(3)
]


@pytest.fixture(scope="module")
def heavy_alone() -> list[tuple[int, ...]]:
    """What the bundled heavy says without heads."""
    return [answer.token_ids for answer in Engine.load(load_recipe("heavy")).generate(HEAVY)]  # type: ignore[union-attr]


@pytest.mark.parametrize("system", ["medusa_tree", "eagle3_tree"])
def test_heads_draft_in_a_pipeline_what_they_draft_in_one_process(
    system: str, heavy_alone: list[tuple[int, ...]]
) -> None:  # fmt: skip
    recipe = load_recipe(SYSTEMS / f"{system}.toml", ["cascade.prefill_tokens=50"])  # prompts come in pieces
    engine = Engine.load(recipe).generate(HEAVY)
    with threaded_pipeline(recipe) as controller:
        answers = ask_all(controller, HEAVY)
        assert [answer.token_ids for answer in answers] == heavy_alone
        for answer, within in zip(answers, engine, strict=True):
            assert isinstance(within, Answer) and within.token_ids == answer.token_ids
            assert answer.target_passes == within.target_passes < len(answer.token_ids)
            assert [edge.to_dict() for edge in answer.edges] == [edge.to_dict() for edge in within.edges]
        assert slots_are_back(controller)


def test_a_target_with_spoilt_heads_answers_alone(heavy_alone: list[tuple[int, ...]]) -> None:
    with threaded_pipeline(load_recipe(SYSTEMS / "eagle_chain.toml")) as controller:
        target = controller.language[0]
        extend, spoilt = target.level.decoder.extend, []

        def with_a_bad_draft(extensions: Any) -> Any:
            choices = extend(extensions)
            if extensions[0].drafts and len(spoilt) < 2:
                spoilt.append(1)
                extensions[0].row.poisoned = True
                return [[-1] * len(choices[0])]
            return choices

        target.level.decoder.extend = with_a_bad_draft
        assert controller.generate(HEAVY[0]).token_ids == heavy_alone[0]
        assert len(spoilt) == 2
        assert slots_are_back(controller)


# -- what stays refused ----------------------------------------------------------------------------------------------


def test_rules_that_weigh_laws_are_refused_by_name(family: Path) -> None:
    recipe = toy_recipe(family, ["noisy"], cascade={"acceptance": "ratio"})
    with pytest.raises(ConfigError, match=r"cascade\.acceptance.*ratio.*shared_noise.*lost or late"):
        recipe.check_runs_apart()
    toy_recipe(family, ["noisy"], tree={"kind": "opt"}).check_runs_apart()
