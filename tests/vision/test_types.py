"""Which type of number each part computes in is the recipe's to say."""

from __future__ import annotations

import torch

from cascade_runtime.config import load_recipe
from cascade_runtime.vision.adapter_verifier import AdapterVerifier
from cascade_runtime.vision.event_branch import EventBranch


def test_encoder_and_adapter_compute_in_their_own_type_and_the_tower_in_the_targets() -> None:
    changes = [f"{place}.dtype=bfloat16" for place in ("stages.light", "encoder", "adapter")]
    recipe = load_recipe("three_level", changes)
    branch, verifier = EventBranch.load(recipe), AdapterVerifier.load(recipe)
    assert branch.encoder is not None and verifier.adapter is not None
    assert branch.encoder.position.dtype == torch.bfloat16
    assert next(verifier.adapter.parameters()).dtype == torch.bfloat16
    assert verifier.shared == (True, True, True)
    assert {next(tower.module.parameters()).dtype for _, tower in verifier.towers} == {torch.float32}
