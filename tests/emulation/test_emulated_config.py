"""Emulated recipes: what makes sense together is kept, the rest is refused by name."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from emulated import emulated_table

from cascade_runtime.config import AdapterProfile, EmulationConfig, EncoderProfile, StepProfile, recipe_from_dict
from cascade_runtime.emulation.answers import read_answers
from cascade_runtime.errors import ConfigError


def test_profiles_are_read_as_written() -> None:
    table = emulated_table(["light"], {"agreement": [0.7]})
    table["stages"]["target"]["profile"] = {
        "base_ms": 25,
        "per_row_ms": 1,
        "per_token_ms": 0.5,
        "per_position_ms": 0.001,
        "prefill_ms": 320.7,
        "prompt_positions": 100,
    }
    table["encoder"]["profile"] = {"render_ms": 3.7, "render_per_second_ms": 1, "encode_ms": 8}
    table["adapter"]["profile"] = {"align_ms": 1, "gate_ms": 2, "dense_ms": 30, "dense_per_second_ms": 49}
    recipe = recipe_from_dict(table)
    assert recipe.target.profile == StepProfile(
        base_ms=25, per_row_ms=1, per_token_ms=0.5, per_position_ms=0.001, prefill_ms=320.7, prompt_positions=100
    )
    assert recipe.encoder and recipe.encoder.profile == EncoderProfile(
        render_ms=3.7, render_per_second_ms=1, encode_ms=8
    )
    assert recipe.adapter and recipe.adapter.profile == AdapterProfile(
        align_ms=1, gate_ms=2, dense_ms=30, dense_per_second_ms=49
    )
    assert recipe.emulation == EmulationConfig(agreement=(0.7,))
    assert recipe.marks == ("emulated, no model ran: light on emulated, target on emulated; made-up tokens",)


def _with(path: str, value: Any) -> dict[str, Any]:
    """A sound table but for one entry; None takes it away."""
    table = deepcopy(emulated_table(["light"], {"agreement": [0.7]}))
    *parents, key = path.split("/")
    inner = table
    for name in parents:
        inner = inner[name]
    if value is None:
        del inner[key]
    else:
        inner[key] = value
    return table


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("emulation", None, "emulation"),
        ("stages/light", {"checkpoint": "family:light"}, "device"),
        ("encoder", {"checkpoint": "family:event_encoder"}, "device"),
        ("stages/light/profile", None, "stages.light.profile"),
        ("stages/light/profile", {}, "profile"),
        ("stages/light/profile", {"base_ms": -1}, "stages.light.profile.base_ms"),
        ("stages/light/profile", {"base_ms": "5"}, "stages.light.profile.base_ms"),
        ("stages/light/profile", {"base_ms": 5, "prefil_ms": 1}, "stages.light.profile.prefil_ms"),
        ("stages/light/profile", {"base_ms": 5, "prompt_positions": 0}, "stages.light.profile.prompt_positions"),
        ("stages/light/checkpoint", "family:light", "stages.light.checkpoint"),
        ("stages/light/device", "emulated:", "stages.light.device"),
        ("stages/light/device", "emulated:../x", "stages.light.device"),
        ("encoder/profile", {"base_ms": 5}, "encoder.profile.base_ms"),
        ("emulation/agreement", [], "emulation.agreement"),
        ("emulation/agreement", [0.5, 0.5], "emulation.agreement"),
        ("emulation/agreement", [1.5], "emulation.agreement"),
        ("emulation/agreement", 0.5, "emulation.agreement"),
        ("emulation/drafters", "oracle", "emulation.drafters"),
        ("emulation/drafters", "ngram", "emulation.answers"),
        ("emulation/answers", "x.json", "emulation.answers"),
        ("emulation/orders", [2], "emulation.orders"),
        ("emulation/seed", -1, "emulation.seed"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(path: str, value: Any, field: str) -> None:
    recipe_from_dict(emulated_table(["light"], {"agreement": [0.7]}))
    with pytest.raises(ConfigError) as refused:
        recipe_from_dict(_with(path, value))
    assert refused.value.field.endswith(field)


def test_a_profile_on_a_real_device_and_an_emulation_without_devices_are_refused() -> None:
    real = {
        "cascade": {"name": "real", "levels": ["heavy"]},
        "stages": {"heavy": {"checkpoint": "family:heavy"}},
    }
    assert recipe_from_dict(real).marks == ()
    with pytest.raises(ConfigError, match="emulation"):
        recipe_from_dict({**real, "emulation": {"agreement": []}})
    real["stages"]["heavy"]["profile"] = {"base_ms": 5}  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"stages\.heavy\.profile"):
        recipe_from_dict(real)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("[", "emulation.answers"),
        ("[]", "emulation.answers"),
        ({"end": 2, "answers": [{"target": [1]}]}, "emulation.answers"),
        ({"end": None, "answers": [{"target": [1]}] * 2}, "end"),
        ({"end": 2, "answers": [{"target": [1]}, {"light": [1]}]}, "answers[1].target"),
        ({"end": 2, "answers": [{"target": [1]}, {"target": [True]}]}, "answers[1].target"),
        ({"end": 2, "answers": [{"target": [1]}, {"target": [-4]}]}, "answers[1].target"),
    ],
)
def test_a_file_of_answers_that_is_not_one_is_refused_where_it_goes_wrong(
    tmp_path: Path, content: Any, field: str
) -> None:
    path = tmp_path / "answers.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError) as refused:
        read_answers(str(path), ["target"])
    assert refused.value.field.endswith(field)
