"""The recipes of the benchmarks: steps as they are named, and recorded times turned into profiles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_family import toy_events

from benchmarks.recipes.stage_times import fit_line, write_recipe
from cascade_runtime.api import Answer, GenerateRequest
from cascade_runtime.config import AdapterProfile, EncoderProfile, SamplingParams, StepProfile, load_recipe
from cascade_runtime.emulation.level import step_cost
from cascade_runtime.engine import Engine

RECIPES = Path(__file__).parents[2] / "benchmarks" / "recipes"


def test_the_emulated_cascade_has_the_steps_it_is_named_after() -> None:
    recipe = load_recipe(RECIPES / "emulated_5_25_100.toml")
    steps = [stage.profile.base_ms for stage in recipe.stages if isinstance(stage.profile, StepProfile)]
    assert steps == [5.0, 25.0, 100.0]
    assert recipe.marks and not recipe.target.checkpoint


def test_a_line_through_lengths_never_goes_below_zero() -> None:
    import numpy as np

    assert fit_line(np.array([2.0, 4.0, 10.0]), np.array([50.0, 90.0, 210.0])) == pytest.approx((10.0, 20.0))
    assert fit_line(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == pytest.approx((0.0, 9 / 5))


def _model(
    load: float, preprocess: float, vision: float, prefill: float, step: float, positions: int
) -> dict[str, object]:
    names = ("load", "preprocess", "vision", "prefill", "decode_per_token")
    means = zip(names, (load, preprocess, vision, prefill, step), strict=True)
    return {**{name: {"mean": ms} for name, ms in means}, "prefill_len": positions}


@pytest.mark.parametrize("gpus", [1, 2])
def test_recorded_stage_times_become_profiles(tmp_path: Path, gpus: int) -> None:
    by_clip = {
        "2s": {"eventgpt": _model(1, 3, 8, 84, 10, 637), "videollava": _model(100, 60, 0, 320, 15, 4124)},
        "10s": {"eventgpt": _model(3, 3, 8, 86, 12, 637), "videollava": _model(500, 60, 0, 322, 15, 4124)},
    }
    (tmp_path / "times.json").write_text(json.dumps({"by_clip": by_clip}))
    said = [{"vl_tokens": [450, 10 + k, 2], "egpt_tokens": [512]} for k in range(6)]
    (tmp_path / "said.json").write_text(json.dumps({"results": said}))
    path = write_recipe(
        tmp_path / "times.json",
        tmp_path / "said.json",
        tmp_path / "out",
        gpus=gpus,
        verify_ms=80.75,
        drafts=20.0,
        drafters="ngram",
    )
    recipe = load_recipe(path)
    light, heavy = recipe.stages
    assert light.profile == StepProfile(base_ms=11, prefill_ms=85, prompt_positions=637)
    line_ms = (321 - 80.75) / (4124 - 21)  # .0586 a token
    assert isinstance(heavy.profile, StepProfile)
    assert (heavy.profile.prefill_ms, heavy.profile.prompt_positions) == (321, 4124)
    cost = step_cost(heavy.profile)
    assert cost.per_token == pytest.approx(1e-3 * line_ms, rel=1e-2)
    assert (cost.seconds(1, 1), cost.seconds(1, 21)) == (
        pytest.approx(0.015, rel=1e-3),
        pytest.approx(0.08075, rel=1e-3),
    )

    assert recipe.encoder and recipe.encoder.profile == EncoderProfile(render_ms=5, encode_ms=8)
    assert recipe.adapter and recipe.adapter.profile == AdapterProfile(dense_ms=60, dense_per_second_ms=50)
    assert (light.device == heavy.device) == (gpus == 1)
    request = GenerateRequest(events=toy_events(0), question="What?", sampling=SamplingParams(max_tokens=8))
    (answer,) = Engine.load(recipe).generate([request])
    assert isinstance(answer, Answer)
    assert answer.token_ids in {(450, 10 + k, 2) for k in (1, 3, 5)}
