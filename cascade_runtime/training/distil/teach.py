"""The training loop: step s of a run is a function of its seed, s and the weights before it, so a run that was stopped
goes on from its last checkpoint as if it had not been.

    state/state.<step>.safetensors   weights and Adam's moments in float32
    state/state.json                 which step, of which run; each is written beside and renamed: whole or not at all
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cascade_runtime.errors import ConfigError
from cascade_runtime.training.clips import See
from cascade_runtime.training.descent import Descent
from cascade_runtime.training.distil.config import DistilConfig
from cascade_runtime.training.distil.lessons import Lessons
from cascade_runtime.training.distil.objectives import Reading
from cascade_runtime.training.language import Packer

Loss = Callable[[Any, Reading], torch.Tensor]


class Trainer:
    """A student, its optimizer, and where both are kept. The tower is not trained."""

    def __init__(self, student: Any, packer: Packer, config: DistilConfig, directory: Path, run: Mapping[str, object]):
        self.student, self.packer, self.config, self.directory = student, packer, config, directory
        self.run = json.loads(json.dumps(dict(run)))
        self.step = 0
        parts = (student.model.multi_modal_projector, student.model.language_model)
        self.eyes = [*student.model.multi_modal_projector.parameters(), student.model.image_newline]
        self.trained = [p for part in parts for p in part.parameters()] + [student.model.image_newline]
        self.descent = Descent(self.trained, config)

    def learn(self, reading: Reading, loss: Loss, *, eyes_only: bool = False) -> float:
        """One step on one batch; with `eyes_only` projector and newline alone. The loss before it."""
        self.descent.begin(self.step / self.config.steps)
        value = loss(self.student, reading)
        if value.requires_grad:
            value.backward()
            if eyes_only:
                kept = {id(p) for p in self.eyes}
                for p in self.trained:
                    if id(p) not in kept:
                        p.grad = None
            self.descent.step()
        self.step += 1
        return float(value.detach())

    def keep(self) -> None:
        """Write weights, moments and step."""
        self.directory.mkdir(parents=True, exist_ok=True)
        tensors = {f"weight.{i}": p.detach().clone() for i, p in enumerate(self.trained)}
        for i, moments in self.descent.optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{i}": value.clone() for name, value in moments.items()}
        name = f"state.{self.step:07d}.safetensors"
        partial = self.directory / f"{name}.{os.getpid()}.partial"
        save_file(tensors, partial)
        partial.replace(self.directory / name)
        partial = self.directory / f"state.json.{os.getpid()}.partial"
        partial.write_text(json.dumps({"step": self.step, "file": name, "run": self.run}), encoding="utf-8")
        partial.replace(self.directory / "state.json")
        for old in self.directory.glob("state.*.safetensors"):
            if old.name != name:
                old.unlink()

    def restore(self) -> bool:
        """Go on from what `keep` wrote, if anything. Raises `ConfigError` where it is of another run."""
        if not (self.directory / "state.json").is_file():
            return False
        kept = json.loads((self.directory / "state.json").read_text(encoding="utf-8"))
        if kept["run"] != self.run:
            changed = sorted(key for key in self.run if kept["run"].get(key) != self.run[key])
            raise ConfigError(str(self.directory), f"a run that differs in {changed}", "the same run, or another --out")
        tensors = load_file(self.directory / kept["file"])
        with torch.no_grad():
            for i, p in enumerate(self.trained):
                p.copy_(tensors[f"weight.{i}"])
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            kind, index = name.rsplit(".", 1)
            if kind != "weight":
                state.setdefault(int(index), {})[kind] = value
        groups = self.descent.optimizer.state_dict()["param_groups"]
        self.descent.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step = kept["step"]
        return True


def read_batch(lessons: Lessons, packer: Packer, see: See, step: int, config: DistilConfig) -> Reading:
    """The batch of a step: clips drawn by (seed, step), seen by `see`."""
    pick = np.random.default_rng([config.seed, 37, step]).choice(len(lessons), config.batch, replace=False)
    at = lessons.positions
    return Reading(
        packer.pack_ids([lessons.pairs[i] for i in pick]),
        see(lessons.maps[torch.from_numpy(pick)]),
        {name: torch.cat([states[at[i]] for i in pick]) for name, states in lessons.hidden.items()},
    )


def teach(
    trainer: Trainer,
    course: Callable[[int], tuple[Lessons, Loss, bool]],
    eyes: tuple[See, See],
    *,
    progress: Callable[[str], None] = print,
) -> None:
    """Train to the end of the run, from where the trainer stands.

    course: step -> (lessons, loss, whether the projector alone learns). eyes: dense and aligned.
    """
    config, start, losses = trainer.config, time.perf_counter(), []
    trainer.student.train()
    first = trainer.step
    while trainer.step < config.steps:
        step = trainer.step
        lessons, loss, eyes_only = course(step)
        aligned = np.random.default_rng([config.seed, 41, step]).random() < config.aligned
        reading = read_batch(lessons, trainer.packer, eyes[aligned], step, config)
        losses.append(trainer.learn(reading, loss, eyes_only=eyes_only))
        if trainer.step % config.save_every == 0 or trainer.step == config.steps:
            trainer.keep()
            speed = (trainer.step - first) * config.batch / (time.perf_counter() - start)
            progress(f"{config.method} step {trainer.step}, {speed:.1f} clips/s, loss {np.mean(losses[-20:]):.4f}")
    trainer.student.eval()
