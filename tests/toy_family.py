"""Small random cascades for tests: real checkpoints in the real format, and drafters that are wrong in every way.

identical   the target's own weights           noisy    the target's weights with noise
random      other random weights               inverted the target's weights, its last norm negated: argmin for
argmax
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cascade_runtime.api import GenerateRequest
from cascade_runtime.config import Recipe, SamplingParams, recipe_from_dict
from cascade_runtime.events import Events
from cascade_runtime.models.event_encoder import Adapter, EventEncoder, save_adapter, save_event_encoder
from cascade_runtime.models.family import build_model, build_tokenizer, save_model
from cascade_runtime.models.loading import load_checkpoint

KINDS = ("target", "identical", "noisy", "random", "inverted")
_TEXT = ("What moves in this scene? A square crosses the view to the left. How many events, how fast, and where?",) * 8


def write_toy_family(directory: Path) -> Path:
    """One checkpoint per kind, an event encoder and an adapter, under `directory`."""
    torch.manual_seed(7)
    tokenizer = build_tokenizer(_TEXT, 320)
    target = build_model("light", tokenizer)  # one layer, full width
    _scatter(target)
    kinds = {"target": target, "identical": target, "random": build_model("light", tokenizer)}
    _scatter(kinds["random"])
    kinds["noisy"] = copy.deepcopy(target)
    with torch.no_grad():
        for parameter in kinds["noisy"].model.language_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.12 * parameter.std().nan_to_num(0.0))
    kinds["inverted"] = copy.deepcopy(target)
    with torch.no_grad():
        kinds["inverted"].model.language_model.norm.weight.neg_()
    for name, model in kinds.items():
        model.model.vision_tower.load_state_dict(target.model.vision_tower.state_dict())
        save_model(model, tokenizer, directory / name)
    encoder = EventEncoder(width=32, layers=1)
    space = save_event_encoder(encoder, directory / "event_encoder")
    tower = load_checkpoint(directory / "target", parts=("vision",)).vision
    assert tower is not None
    adapter = Adapter(
        source_dim=32, target_dim=tower.feature_size, hidden=32, source_space=space, target_space=tower.space
    )
    save_adapter(adapter, directory / "adapter")
    return directory


def _scatter(model: torch.nn.Module) -> None:
    """Weights large enough that answers wander instead of repeating one token."""
    with torch.no_grad():
        for name, parameter in model.model.language_model.named_parameters():  # type: ignore[union-attr, operator]
            if parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(9.0)


def toy_recipe(
    family: Path,
    drafters: Sequence[str],
    gammas: Sequence[int] | None = None,
    *,
    event_branch: bool = True,
    **tables: object,
) -> Recipe:
    """A cascade of `drafters` in front of the target; `tables` override whole tables of the recipe."""
    names = [f"level{k}" for k in range(len(drafters))] + ["target"]
    kinds = [*drafters, "target"]
    cascade = {
        "name": "toy",
        "levels": names,
        "num_draft_tokens": list(gammas if gammas is not None else [3] * len(drafters)),
        "window": 12,
        "slots": 4,
        "max_len": 256,
        **tables.pop("cascade", {}),  # type: ignore[dict-item]
    }
    recipe: dict[str, object] = {
        "deadlines": {"start_s": 300.0},
        "policy": {"mode": "fixed"},  # all of one size: a policy that measures would rather not draft at all
        "cascade": cascade,
        "stages": {
            name: {"checkpoint": str(family / kind), "num_cpus": 0.2} for name, kind in zip(names, kinds, strict=True)
        },
        **tables,
    }
    if event_branch:
        for part in ("event_encoder", "adapter"):
            recipe["encoder" if part == "event_encoder" else part] = {"checkpoint": str(family / part), "num_cpus": 0.2}
    return recipe_from_dict(recipe)


def edge_recipe(family: Path, drafters: Sequence[str], deadlines: dict[str, float], **tables: object) -> Recipe:
    """The same with the lightest level on edge boxes."""
    plain = toy_recipe(family, drafters, deadlines=deadlines, **tables)
    return replace(plain, stages=(replace(plain.stages[0], drafter="edge"), *plain.stages[1:]))


def toy_events(seed: int = 0, count: int = 3000, span_us: int = 50_000) -> Events:
    """A recording: noise with a drifting centre."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, span_us, count))
    x = np.clip(rng.normal(20 + 60 * t / span_us, 8), 0, 127).astype(np.uint16)
    y = rng.integers(0, 96, count).astype(np.uint16)
    return Events(t, x, y, rng.integers(0, 2, count).astype(np.uint8), width=128, height=96)


def toy_requests(count: int, *, seed: int = 0, max_tokens: int = 24) -> list[GenerateRequest]:
    """Mixed requests: greedy and sampled, short and long, with and without stop strings."""
    rng = np.random.default_rng(seed)
    requests = []
    for index in range(count):
        sampling = SamplingParams(
            temperature=[0.0, 0.7, 1.0, 1.5][index % 4],
            top_k=int(rng.choice([0, 0, 5, 40])),
            top_p=float(rng.choice([1.0, 0.9])),
            seed=int(rng.integers(0, 2**40)),
            max_tokens=int(rng.integers(1, max_tokens + 1)),
            stop=("e",) if index % 7 == 3 else (),
        )
        question = "What moves?" if index % 3 else "How many events are there, and where " * int(rng.integers(1, 4))
        requests.append(GenerateRequest(events=toy_events(index % 5), question=question, sampling=sampling))
    return requests
