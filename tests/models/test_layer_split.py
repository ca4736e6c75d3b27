"""A language model split by layers over devices. There is one kind of device here that computes; the other is "meta",
which has shapes and refuses to be mixed with it: whatever were left on the wrong device would be found out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_family import toy_requests, write_toy_family

from cascade_runtime.config import Recipe, load_recipe, recipe_from_dict
from cascade_runtime.engine import Engine
from cascade_runtime.errors import ConfigError
from cascade_runtime.models import language as language_module
from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.block import Block
from cascade_runtime.models.bundled import family_path
from cascade_runtime.models.layer_split import shares

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize(
    ("layers", "devices", "ends", "expected"),
    [(28, 2, 4.6, [12, 16]), (80, 2, 2.8, [39, 41]), (80, 3, 2.8, [25, 28, 27]), (4, 4, 9.0, [1, 1, 1, 1])],
)
def test_the_first_device_has_fewer_layers_for_what_else_it_holds(
    layers: int, devices: int, ends: float, expected: list[int]
) -> None:
    assert shares(layers, devices, ends) == expected


def crossings_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.device, torch.device]]:
    """From which device to which tensors move from now on; what comes back from "meta" is zeros."""
    crossings: list[tuple[torch.device, torch.device]] = []

    def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if tensor.device == device:
            return tensor
        crossings.append((tensor.device, device))
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.device == META else tensor.to(device)

    monkeypatch.setattr(language_module, "moved", moved)
    return crossings


def test_every_pass_crosses_once_and_nothing_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    path = family_path("heavy")
    whole = load_checkpoint(path, parts=("language",)).language
    split = load_checkpoint(path, parts=("language",), layer_devices=("cpu", "meta")).language
    assert whole is not None and split is not None
    assert whole.devices == (CPU,) and split.devices == (CPU, META) and split.device == CPU
    assert split.weight_bytes == whole.weight_bytes
    held = split.new_cache(3, 32).held
    assert [each.device for each in held] == [block.device for block in split.blocks]

    crossings = crossings_of(monkeypatch)
    inside: list[tuple[torch.device, torch.device]] = []
    plain = Block.__call__

    def watched(self: Block, x: torch.Tensor, turns: torch.Tensor, cache: object) -> torch.Tensor:
        inside.append((x.device, turns.device))
        return plain(self, x, turns, cache)  # type: ignore[arg-type]

    monkeypatch.setattr(Block, "__call__", watched)
    torch.manual_seed(0)
    embeds = torch.randn(7, whole.hidden_size) * 0.02
    where = {"slots": [2, 0], "starts": [0, 0], "counts": [4, 3], "positions": torch.tensor([0, 1, 2, 3, 0, 1, 2])}
    kept: list[dict[int, torch.Tensor]] = [{}, {}]
    for model, keep in ((whole, kept[0]), (split, kept[1])):
        out = model.forward(embeds, cache=model.new_cache(3, 32), keep=keep, **where)  # type: ignore[arg-type]
        assert out.shape == embeds.shape and out.device == CPU
    here = [block.device for block in split.blocks]
    assert inside[len(here) :] == [(device, device) for device in here]
    assert crossings == [(CPU, META), (CPU, META), (META, CPU)]  # states and turns there, states back
    for index, device in enumerate(here):
        assert kept[1][index].device == device
        if device == CPU:
            assert torch.equal(kept[1][index], kept[0][index])


def test_blocks_a_part_at_a_time_cross_where_the_model_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    split = load_checkpoint(family_path("heavy"), parts=("language",), layer_devices=("cpu", "meta")).language
    assert split is not None
    here = sum(block.device == CPU for block in split.blocks)
    crossings = crossings_of(monkeypatch)
    where: dict[str, Any] = {"slots": [1], "starts": [0], "counts": [2], "positions": torch.tensor([0, 1])}
    states, cache = torch.randn(2, split.hidden_size), split.new_cache(2, 8)
    for blocks, expected in (
        (range(here), []),
        (range(here - 1, here + 1), [(CPU, META), (CPU, META), (META, CPU)]),
        (range(here, len(split.blocks)), [(CPU, META), (CPU, META), (META, CPU)]),
    ):
        crossings.clear()
        assert split.through(states, blocks, cache=cache, **where).device == CPU
        assert crossings == expected, blocks


def test_rows_move_and_are_copied_on_every_device() -> None:
    split = load_checkpoint(family_path("heavy"), parts=("language",), layer_devices=("cpu", "meta")).language
    assert split is not None
    cache = split.new_cache(2, 8)
    cache.held[0][0, :4] = torch.arange(4.0)[:, None, None, None]
    cache.move(0, [1, 3], 0)
    assert cache.held[0][0, :2, 0, 0, 0].tolist() == [1.0, 3.0]
    cache.copy(0, 1, 2)
    cache.scrub(0)
    assert cache.held[0][1, :2, 0, 0, 0].tolist() == [1.0, 3.0] and not cache.held[0][0].any()


def test_a_recipe_may_split_a_stage_and_says_the_same(tmp_path: Path) -> None:
    def recipe(device: str, checkpoint: str = "family:heavy") -> Recipe:
        stage = {"checkpoint": checkpoint, "device": device}
        return recipe_from_dict({"cascade": {"name": "s", "levels": ["target"]}, "stages": {"target": stage}})

    requests = toy_requests(3, seed=5, max_tokens=8)
    told = [Engine.load(recipe(device)).generate(requests) for device in ("cpu+cpu", "cpu")]
    assert [a.token_ids for a in told[0]] == [a.token_ids for a in told[1]]  # type: ignore[union-attr]
    family = write_toy_family(tmp_path)  # of one layer
    with pytest.raises(ConfigError, match="at most 1 devices"):
        Engine.load(recipe("cpu+cpu", str(family / "target")))


@pytest.mark.parametrize(
    "stage", [{"device": "cuda:0+"}, {"device": "cuda+cuda"}, {"device": "cpu+cpu", "compile": True}]
)
def test_what_cannot_be_split_is_refused(stage: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"stages\.target\.device"):
        recipe_from_dict(
            {
                "cascade": {"name": "s", "levels": ["target"]},
                "stages": {"target": {"checkpoint": "family:heavy", **stage}},
            }
        )


def test_the_setup_that_needs_it_names_two_devices() -> None:
    assert load_recipe("setups/2xh100").target.device == "cuda:0+cuda:1"
