"""What a drafter is worth: its agreement with the target, and what a cascade makes of it.

Agreement and the chance that the ratio test accepts (1 - TVD, at temperature 1) are teacher-forced on the target's own
greedy answers; hazards, acceptance length and tokens per pass are counted by the in-process engine while it answers.
Agreement says nothing of where a refusal falls, and a cosine between features says nothing of tokens at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cascade_runtime.config import Recipe
from cascade_runtime.errors import InputError
from cascade_runtime.evaluation.report import see_dense
from cascade_runtime.evaluation.simulated import Question, draw_exam
from cascade_runtime.metrics import EdgeCounters, merge_edges
from cascade_runtime.models.family import read_model
from cascade_runtime.training.distil.divergences import tvd
from cascade_runtime.training.distil.lessons import Lessons
from cascade_runtime.training.distil.run import Pairing, member_directory
from cascade_runtime.training.distil.speak import answer, answer_ids, load_speaker
from cascade_runtime.training.distil.states import answer_states, log_probs
from cascade_runtime.training.language import Packer

_BATCH = 32


@dataclass(frozen=True)
class TargetAnswers:
    """What the target said about scenes, and its log-probabilities (A, V) at every token of it, ends included."""

    questions: tuple[Question, ...]
    ids: list[list[int]]
    log_p: torch.Tensor

    @classmethod
    @torch.inference_mode()
    def read(
        cls, target: Any, packer: Packer, raw: torch.Tensor, questions: Sequence[Question], ids: list[list[int]]
    ) -> TargetAnswers:
        """raw: the target's dense features of all scenes."""
        return cls(tuple(questions), ids, _log_probs(target, packer, raw, questions, ids))


@dataclass(frozen=True)
class Agreement:
    """Shares in 0..1. tokens: of the target's own that the drafter chooses too; ratio: mean 1 - TVD."""

    tokens: float
    ratio: float


@dataclass(frozen=True)
class Acceptance:
    """What a cascade did over `answers` answers. edges: counters by edge, "light-heavy"."""

    answers: int
    tokens: int
    target_passes: int
    edges: dict[str, EdgeCounters]

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / max(self.target_passes, 1)


@torch.inference_mode()
def agree(drafter: Any, packer: Packer, raw: torch.Tensor, said: TargetAnswers) -> Agreement:
    """Of a drafter (or of the target itself) that sees `raw` features of the scenes, dense or aligned."""
    log_q = _log_probs(drafter, packer, raw, said.questions, said.ids)
    same = (log_q.argmax(-1) == said.log_p.argmax(-1)).float().mean()
    return Agreement(float(same), float(1 - tvd(said.log_p, log_q).mean()))


def check_held_out(lessons: Lessons, maps: torch.Tensor) -> None:
    """Raise `InputError` where a scene of `maps` is one of the lessons'."""
    learnt = {clip.half().numpy().tobytes() for clip in lessons.maps}
    seen = [scene for scene, clip in enumerate(maps) if clip.half().numpy().tobytes() in learnt]
    if seen:
        raise InputError("held-out scenes", seen, "scenes that no lesson holds")


def run_cascade(recipe: Recipe, maps: torch.Tensor, questions: Sequence[Question]) -> Acceptance:
    """Let the engine answer greedily with a recipe's cascade; maps (n, F, 3, S, S)."""
    given = answer(load_speaker(recipe), maps, [(question.scene, question.text) for question in questions])
    return Acceptance(
        answers=len(given),
        tokens=sum(len(one.token_ids) for one in given),
        target_passes=sum(one.target_passes for one in given),
        edges=merge_edges(edge for one in given for edge in one.edges),
    )


def before_and_after(pairing: Pairing, made: Path, *, scenes: int) -> Iterator[str]:
    """Two lines on held-out scenes: the student as it was and the one that was `made`, in front of the teacher."""
    exam = draw_exam(scenes, seed=3)
    teacher, tokenizer = read_model(member_directory(pairing.teacher))
    packer = Packer(tokenizer)
    raw = see_dense(teacher.model.vision_tower, exam.maps)
    asked = [(question.scene, question.text) for question in exam.questions]
    ids = answer_ids(answer(load_speaker(pairing.recipe), exam.maps, asked))
    said = TargetAnswers.read(teacher, packer, raw, exam.questions, ids)
    for name, student in (("before", str(member_directory(pairing.student))), ("after", str(made))):
        found = agree(read_model(student)[0], packer, raw, said)
        run = run_cascade(replace(pairing, student=student).recipe, exam.maps, exam.questions)
        yield (
            f"{name}: {found.tokens:.1%} of the teacher's tokens, ratio test {found.ratio:.1%}, "
            f"{run.tokens_per_pass:.2f} tokens per target pass ({len(ids)} answers about {scenes} held-out scenes)"
        )


def _log_probs(
    model: Any, packer: Packer, raw: torch.Tensor, questions: Sequence[Question], ids: list[list[int]]
) -> torch.Tensor:
    read = []
    for at in range(0, len(questions), _BATCH):
        part = questions[at : at + _BATCH]
        packed = packer.pack_ids([[(q.text, list(said))] for q, said in zip(part, ids[at : at + _BATCH], strict=True)])
        last = answer_states(model, packed, raw[[question.scene for question in part]], packer)[-1]
        read.append(log_probs(model, last, packer))
    return torch.cat(read)
