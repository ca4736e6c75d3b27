"""Held-out simulated scenes: are the answers right, and would heavy have said the same?

The scenes come from seeds that training never uses, without the turns of `training/pool.py`, so they are what the
simulator gives. Accuracy is graded against the scene's facts (`training/questions.grade`); directions are also graded
within 45 degrees, and once more where the camera moves towards or away from the scene. Agreement is teacher-forced
on heavy's own greedy answers: the share of its tokens that another model would have chosen at the same place, which is
what a verifier accepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from cascade_runtime.errors import InputError
from cascade_runtime.evaluation.direction import IN_PLANE, near
from cascade_runtime.training.clips import fresh_questions
from cascade_runtime.training.facts import AMBIGUOUS, Facts
from cascade_runtime.training.language import IGNORED, Packer, answer_greedily, choices
from cascade_runtime.training.pool import HELD_OUT, make_chunk
from cascade_runtime.training.questions import grade, read_facts

FIRST_CHUNK = HELD_OUT + 5_000
WITHIN_45 = "direction within 45"
TOWARD_OR_AWAY = "toward or away"


@dataclass(frozen=True)
class Question:
    """One question about one scene, with the true answer's text."""

    scene: int
    kind: str
    text: str
    truth: str


@dataclass(frozen=True)
class Exam:
    """Scenes whose facts are all decided: maps (n, F, 3, S, S), facts (n, 7), and questions about them."""

    maps: torch.Tensor
    rows: np.ndarray
    questions: tuple[Question, ...]


@dataclass
class Score:
    """Right and asked per question kind; a description can be right in part.

    `per_kind` has two labels more, WITHIN_45 and TOWARD_OR_AWAY: other views of "direction", left out of `overall`.
    """

    right: dict[str, float] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, right: float) -> None:
        self.right[kind] = self.right.get(kind, 0) + right
        self.asked[kind] = self.asked.get(kind, 0) + 1

    @property
    def overall(self) -> float:
        kinds = [kind for kind in self.asked if kind not in (WITHIN_45, TOWARD_OR_AWAY)]
        return sum(self.right[kind] for kind in kinds) / max(sum(self.asked[kind] for kind in kinds), 1)

    def per_kind(self) -> dict[str, float]:
        return {kind: self.right[kind] / self.asked[kind] for kind in self.asked}


def draw_exam(scenes: int, *, questions_each: int = 3, seed: int = 0) -> Exam:
    """`scenes` scenes that no training chunk holds, each with a few random questions.

    Exams of other seeds share no scene. Raises `InputError` for no scenes at all and for seeds that would reach into
    the training chunks.
    """
    if scenes < 1:
        raise InputError("scenes", scenes, "1 or more")
    if seed < 0:
        raise InputError("seed", seed, "0 or more")
    maps, rows, number = [], [], FIRST_CHUNK + 1000 * seed
    while sum(len(part) for part in rows) < scenes:
        more_maps, more_rows = make_chunk(number, 256)
        usable = (more_rows != AMBIGUOUS).all(1)
        maps.append(more_maps[usable])
        rows.append(more_rows[usable])
        number += 1
    all_rows = np.concatenate(rows)[:scenes]
    rng = np.random.default_rng([seed, 31])
    questions = tuple(Question(*drawn) for drawn in fresh_questions(all_rows, rng, questions_each))
    return Exam(torch.from_numpy(np.concatenate(maps)[:scenes]).float(), all_rows, questions)


def answers(model: object, packer: Packer, raw: torch.Tensor, questions: Sequence[Question]) -> list[list[int]]:
    """Greedy answers as token ids, in batches. raw: features of all scenes."""
    said: list[list[int]] = []
    for at in range(0, len(questions), 48):
        part = questions[at : at + 48]
        said += answer_greedily(model, packer, raw[[q.scene for q in part]], [q.text for q in part])
    return said


def score(exam: Exam, packer: Packer, said: Sequence[Sequence[int]]) -> Score:
    """Grade answers against the facts."""
    result = Score()
    for question, ids in zip(exam.questions, said, strict=True):
        facts = Facts.from_row(exam.rows[question.scene])
        text = packer.tokenizer.decode(list(ids))
        right = grade(question.kind, text, facts)
        result.add(question.kind, right)
        if question.kind == "direction":
            moves = facts.direction >= 0
            result.add(WITHIN_45, near(read_facts(text).get("direction"), facts.direction) if moves else right)
            if facts.direction >= IN_PLANE:
                result.add(TOWARD_OR_AWAY, right)
    return result


def agreement(
    model: object, packer: Packer, raw: torch.Tensor, exam: Exam, target: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """(share of the target's tokens that `model` chooses itself, share of whole answers), the end token included."""
    tokens = same = whole = 0
    for at in range(0, len(exam.questions), 32):
        part = exam.questions[at : at + 32]
        packed = packer.pack_ids([[(q.text, list(ids))] for q, ids in zip(part, target[at : at + 32], strict=True)])
        chosen = choices(model, packed, raw[[q.scene for q in part]], packer)
        counted = packed.targets != IGNORED
        equal = (chosen == packed.targets) | ~counted
        tokens += int(counted.sum())
        same += int((equal & counted).sum())
        whole += int(equal.all(1).sum())
    return same / max(tokens, 1), whole / max(len(exam.questions), 1)
