"""What a recipe's stage means here: which directory it loads, and on which device."""

from __future__ import annotations

from typing import Any

import torch

from cascade_runtime.config import StageConfig
from cascade_runtime.models.bundled import family_path
from cascade_runtime.models.loading import load_checkpoint


def checkpoint_path(stage: StageConfig) -> str:
    """The directory a stage loads: a bundled family member or a directory of the user's."""
    return str(family_path(stage.family_member) if stage.family_member else stage.path)


def pick_device(device: str) -> str:
    """A recipe's device, the first where it names several; "auto" is the first GPU if there is one."""
    if device != "auto":
        return device.partition("+")[0]
    return "cuda" if torch.cuda.is_available() else "cpu"


def layer_devices(device: str) -> tuple[str, ...]:
    """The devices over which a recipe splits a model's layers, in order; none where it names one."""
    return tuple(device.split("+")) if "+" in device else ()


def load_front(stage: StageConfig) -> Any:
    """What must be known of a checkpoint outside its stage: tokenizer, frame rule, feature space; no language
    weights.
    """
    return load_checkpoint(checkpoint_path(stage), parts=("projector",))
