"""Held-out simulated scenes: are the answers right, and would heavy have said the same?

The scenes come from seeds that training never uses, without the turns of `training/pool.py`, so they are what the
simulator gives. Accuracy is graded against the scene's facts (`training/questions.grade`). Agreement is
teacher-forced on heavy's own greedy answers: the share of its tokens that another model would have chosen at the same
place, which is what a verifier accepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from cascade_runtime.training.clips import fresh_questions
from cascade_runtime.training.facts import AMBIGUOUS, Facts
from cascade_runtime.training.language import IGNORED, Packer, answer_greedily, choices
from cascade_runtime.training.pool import HELD_OUT, make_chunk
from cascade_runtime.training.questions import grade

FIRST_CHUNK = HELD_OUT + 5_000


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
    """Right and asked per question kind; a description can be right in part."""

    right: dict[str, float] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, right: float) -> None:
        self.right[kind] = self.right.get(kind, 0) + right
        self.asked[kind] = self.asked.get(kind, 0) + 1

    @property
    def overall(self) -> float:
        return sum(self.right.values()) / max(sum(self.asked.values()), 1)

    def per_kind(self) -> dict[str, float]:
        return {kind: self.right[kind] / self.asked[kind] for kind in self.asked}


def draw_exam(scenes: int, *, questions_each: int = 3, seed: int = 0) -> Exam:
    """`scenes` scenes that no training chunk holds, each with a few random questions."""
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
        result.add(question.kind, grade(question.kind, packer.tokenizer.decode(list(ids)), facts))
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
