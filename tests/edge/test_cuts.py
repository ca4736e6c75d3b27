"""Wherever the work is cut, the answer is that of the same window in this process: toy models, real gRPC."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edge.edge_ends import box, core
from threaded_pipeline import threaded_pipeline
from toy_family import toy_events, toy_recipe, write_toy_family

from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.edge.arrays import pack_arrays, unpack_arrays
from cascade_runtime.edge.feature_packing import FeatureModels, FeaturePacker
from cascade_runtime.edge.ingest import windows_of
from cascade_runtime.edge.packing import FramePacker, RawPacker
from cascade_runtime.edge.unpacking import Unpacker
from cascade_runtime.errors import ConfigError, FeatureSpaceError, InputError
from cascade_runtime.in_process import InProcess
from cluster.edge.seeing import seeing_of

ROOT = Path(__file__).parents[2]
SAMPLING = SamplingParams(temperature=0.8, seed=11, max_tokens=10)
EVENTS = toy_events(2, count=6000, span_us=140_000)
QUESTION = "What moves?"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def recipes(family: Path) -> dict[str, Recipe]:
    """Strict, aligned with every frame accepted, and strict with a drafter that asks where the events lie."""
    accepts = {"policy": "predicted", "accept": -1.0, "reject": -1.0}
    sees = {
        name: {"checkpoint": str(family / kind), **more}
        for name, kind, more in (("level0", "noisy", {"sees": "events:4"}), ("target", "target", {}))
    }
    return {
        "strict": toy_recipe(family, ["noisy"]),
        "aligned": toy_recipe(family, ["noisy"], cascade={"mode": "aligned"}, gate=accepts),
        "sees": toy_recipe(family, ["noisy"], stages=sees),
    }


def here(transport: InProcess) -> list[tuple[int, ...]]:
    """The tokens for every window, without an edge."""
    requests = [
        GenerateRequest(events=window.events, question=QUESTION, sampling=SAMPLING)
        for window in windows_of(EVENTS, 50_000)
    ]
    answers = transport.engine.generate(requests)
    return [answer.token_ids for answer in answers if isinstance(answer, Answer)]


@pytest.mark.parametrize("name", ["strict", "aligned", "sees"])
def test_every_cut_gives_the_tokens_of_this_process(recipes: dict[str, Recipe], name: str) -> None:
    recipe = recipes[name]
    transport = InProcess(recipe)
    wanted = here(transport)
    assert len(wanted) == 3 and len(set(wanted)) >= 2
    seeing = seeing_of(recipe)
    assert seeing.counts == (name == "sees")
    sizes = {}

    async def test() -> None:
        async with core(transport, seeing) as (_, port):
            for cut in ("raw", "frames", "features"):
                replies: list[Any] = []
                edge = box(port, EVENTS, cut=cut, recipe=recipe, question=QUESTION, sampling=SAMPLING)
                await asyncio.wait_for(edge.run(replies.append), 60)
                assert [tuple(reply.outcome.answer.token_ids) for reply in replies] == wanted, cut
                assert all(reply.outcome.answer.levels == ["level0", "target"] for reply in replies)
                sizes[cut] = sum(reply.payload_bytes for reply in replies)

    asyncio.run(test())
    assert sizes["frames"] < sizes["raw"] < sizes["features"]


def test_the_stages_of_a_pipeline_take_what_an_edge_made(recipes: dict[str, Recipe]) -> None:
    recipe = recipes["aligned"]
    seeing = seeing_of(recipe)
    window = next(iter(windows_of(EVENTS, 50_000)))
    answers = []
    with threaded_pipeline(recipe) as controller:
        for packer in (RawPacker(), FramePacker(seeing), FeaturePacker(FeatureModels.load(recipe), seeing)):
            cut = {"RawPacker": "raw", "FramePacker": "frames"}.get(type(packer).__name__, "features")
            sent = Unpacker(seeing, cut, EVENTS.width, EVENTS.height).window([packer.pack(window)])
            request = GenerateRequest(events=sent, question=QUESTION, sampling=SAMPLING)
            answers.append(controller.generate(request).token_ids)
    assert answers[0] == answers[1] == answers[2] and len(answers[0]) > 1


def test_in_mode_aligned_the_sent_features_are_what_the_target_sees(recipes: dict[str, Recipe]) -> None:
    """Spoilt features change the answer: they are used, not made again."""
    recipe = recipes["aligned"]
    transport, seeing = InProcess(recipe), seeing_of(recipe)
    window = next(iter(windows_of(EVENTS, 50_000)))
    part = FeaturePacker(FeatureModels.load(recipe), seeing).pack(window)
    arrays = {name: array.copy() for name, array in unpack_arrays(part.payload, 1 << 26).items()}
    answers = []
    for factor in (1.0, -4.0):
        part.payload = pack_arrays({**arrays, "aligned": arrays["aligned"] * factor})
        sent = Unpacker(seeing, "features", EVENTS.width, EVENTS.height).window([part])
        request = GenerateRequest(events=sent, question=QUESTION, sampling=SAMPLING)
        (answer,) = transport.engine.generate([request])
        assert isinstance(answer, Answer)
        answers.append(answer.token_ids)
    assert answers[0] == here(transport)[0] != answers[1]


def test_features_of_another_space_or_shape_are_refused_by_the_stage(recipes: dict[str, Recipe]) -> None:
    recipe = recipes["strict"]
    engine, seeing = InProcess(recipe).engine, seeing_of(recipe)
    window = next(iter(windows_of(EVENTS, 50_000)))
    branch, verifier = engine.front_end.branch, engine.front_end.verifier

    def changed(change: Any) -> Any:
        part = FeaturePacker(FeatureModels.load(recipe), seeing).pack(window)
        arrays = dict(unpack_arrays(part.payload, 1 << 26))
        change(part, arrays)
        part.payload = pack_arrays(arrays)
        return Unpacker(seeing, "features", EVENTS.width, EVENTS.height).window([part])

    def source_space(part: Any, arrays: Any) -> None:
        part.rendered.source_space = "another encoder's"

    def target_space(part: Any, arrays: Any) -> None:
        part.rendered.target_space = "another tower's"

    def patches(part: Any, arrays: Any) -> None:
        arrays["aligned"] = arrays["aligned"][:, 1:]

    def infinite(part: Any, arrays: Any) -> None:
        arrays["features"] = arrays["features"] * float("inf")

    with pytest.raises(FeatureSpaceError, match=r"features\.space"):
        branch.view(changed(source_space))
    with pytest.raises(FeatureSpaceError, match=r"features\.space"):
        verifier.aligned(branch.view(changed(target_space)))
    with pytest.raises(FeatureSpaceError, match="aligned"):
        verifier.aligned(branch.view(changed(patches)))
    with pytest.raises(InputError, match="NaN or infinity"):
        changed(infinite)
    assert verifier.aligned(branch.view(changed(lambda part, arrays: None))).space == seeing.target_space


def test_an_edge_whose_models_are_not_the_cores_is_told_before_it_sends(recipes: dict[str, Recipe]) -> None:
    recipe = recipes["strict"]
    seeing = seeing_of(recipe)
    with pytest.raises(FeatureSpaceError, match="the core's"):
        FeaturePacker(FeatureModels.load(recipe), replace(seeing, source_space="another"))
    bare = toy_recipe(Path(recipe.target.checkpoint or "").parent, ["noisy"], event_branch=False)
    assert seeing_of(bare).cuts == ("raw", "frames")
    with pytest.raises(ConfigError, match=r"\[encoder\]"):
        FeatureModels.load(bare)


def test_the_box_needs_torch_for_the_cut_features_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIGHT_BOX],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


_LIGHT_BOX = """
import sys
import cluster.edge.box
from cascade_runtime.edge.cut import Seeing
from cascade_runtime.edge.ingest import windows_of
from cascade_runtime.edge.packing import FramePacker, RawPacker
from cascade_runtime.edge.packing import FramePacker, RawPacker
from cascade_runtime.events import Events

events = Events([1, 2], [1, 1], [1, 1], [0, 1], width=8, height=8)
window = next(iter(windows_of(events, 50_000)))
seeing = Seeing(recipe="r", cuts=("raw",), rule="activity", options={})
assert RawPacker().pack(window).payload and FramePacker(seeing).pack(window).payload
print([name for name in ("torch", "ray", "transformers") if name in sys.modules])
"""
