"""`distil`: one run from names to a checkpoint that a recipe can load.

OUT/lessons    the teacher's answers and states, made once        OUT/own_<round>   the student's answers, scored
OUT/state      where a stopped run goes on                        OUT/reference     AdaSPEC's reference, a run itself
OUT/<student>  the taught student, in the Hugging Face format; written beside and renamed
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cascade_runtime.config import Recipe, load_recipe
from cascade_runtime.errors import ConfigError
from cascade_runtime.models.bundled import LAYERS, family_path
from cascade_runtime.models.event_encoder import load_adapter, load_event_encoder
from cascade_runtime.models.family import read_model
from cascade_runtime.models.stage_source import checkpoint_path
from cascade_runtime.training.clips import See, see_with
from cascade_runtime.training.distil.config import DistilConfig
from cascade_runtime.training.distil.divergences import LOSSES
from cascade_runtime.training.distil.lessons import Lessons, Pairs, draw_questions, find, keep, score
from cascade_runtime.training.distil.objectives import OBJECTIVES, Reading, Teaching, hard
from cascade_runtime.training.distil.selection import layer_pairs
from cascade_runtime.training.distil.speak import answer, answer_ids, load_speaker
from cascade_runtime.training.distil.teach import Trainer, teach
from cascade_runtime.training.distil.whole import write_model
from cascade_runtime.training.distillation import see_through
from cascade_runtime.training.language import Packer, answer_greedily

PROJECTOR_FIRST = 0.25  # of MASSV's steps
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Pairing:
    """Who teaches whom. student, teacher: bundled members ("light") or directories of checkpoints that share
    tokenizer and tower. sets: TABLE.KEY=VALUE over the bundled two-level recipe, whose event encoder and adapter
    the student is to see through. lessons: a directory for the teacher's answers that several runs may share.
    reference: a model of the student's size that was distilled before, for AdaSPEC; made where None.
    """

    student: str
    teacher: str
    sets: tuple[str, ...] = ()
    lessons: Path | None = None
    reference: Path | None = None

    @property
    def recipe(self) -> Recipe:
        stages = {"light": member_directory(self.student), "heavy": member_directory(self.teacher)}
        named = [f'stages.{level}.checkpoint="{path}"' for level, path in stages.items()]
        return load_recipe("light_heavy", [*named, *self.sets])

    @property
    def name(self) -> str:
        """What the taught student's directory is called."""
        return self.student if self.student in LAYERS else Path(self.student).name

    def teachers(self, method: str) -> dict[str, Path]:
        """Name -> directory of those that score: none, the teacher, or for "cascade_aware" every bundled member from
        the student up to the teacher."""
        if method == "hard":
            return {}
        order = list(LAYERS)
        last = {"teacher": member_directory(self.teacher)}
        if method != "cascade_aware" or self.student not in order or self.teacher not in order:
            return last
        middle = order[order.index(self.student) + 1 : order.index(self.teacher)]
        return {name: family_path(name) for name in middle} | last


def member_directory(name: str) -> Path:
    """A bundled language model by name, or a directory. Raises `ConfigError` for what is neither."""
    if name in LAYERS:
        return family_path(name)
    if not (Path(name) / "config.json").is_file():
        raise ConfigError("student, teacher", name, f"one of {', '.join(LAYERS)}, or a checkpoint directory")
    return Path(name)


def distil(
    pairing: Pairing,
    config: DistilConfig,
    out_dir: str | Path,
    *,
    progress: Progress = print,
) -> Path:
    """Teach the student and write it under `out_dir`; returns its directory. A run that was stopped goes on where its
    last checkpoint is; one that is done is not run again. Raises `ConfigError`, for another run's `out_dir` too.
    """
    out = Path(out_dir)
    source = member_directory(pairing.student)
    student, tokenizer = read_model(source)
    packer = Packer(tokenizer)
    teachers = {name: _teacher(path, student, tokenizer) for name, path in pairing.teachers(config.method).items()}
    if config.fresh:
        student = _fresh(student, config.seed)
    run = {"student": str(source), "teacher": pairing.teacher, "sets": list(pairing.sets), **asdict(config)}
    trainer = Trainer(student, packer, config, out / "state", run)
    made = out / pairing.name
    if trainer.restore() and trainer.step == config.steps and made.is_dir():
        return made
    reference = _reference(pairing, config, out, progress) if config.method == "adaspec" else None
    teaching = Teaching(packer, LOSSES[config.loss], teachers, reference)
    recipe = pairing.recipe
    truth = draw_questions(packer, config.scenes, config.pairs, config.seed)
    taught = truth
    if teachers:
        taught = _taught(truth, recipe, teaching, trainer, pairing.lessons or out / "lessons", progress)
    course = _Course(truth, taught, teaching, trainer, out, progress)
    teach(trainer, course, _eyes(recipe, student, config), progress=progress)
    write_model(student, tokenizer, made)
    return made


class _Course:
    """Step -> what is read, the loss, and whether the projector alone learns."""

    def __init__(
        self, truth: Lessons, taught: Lessons, teaching: Teaching, trainer: Trainer, out: Path, progress: Progress
    ) -> None:
        self.truth, self.taught, self.teaching, self.trainer = truth, taught, teaching, trainer
        self.out, self.progress = out, progress
        self._round, self._own = -1, taught
        self._loss = partial(_loss, OBJECTIVES[trainer.config.method], teaching)

    def __call__(self, step: int) -> tuple[Lessons, Callable[[Any, Reading], torch.Tensor], bool]:
        config = self.trainer.config
        if config.method == "massv" and step < PROJECTOR_FIRST * config.steps:
            return self.truth, partial(_loss, hard, self.teaching), True
        # Every fourth batch where own = 1 / 4: as even as can be.
        if config.method == "distillspec" and int((step + 1) * config.own) > int(step * config.own):
            return self.own(min(step * config.rounds // config.steps, config.rounds - 1)), self._loss, False
        return self.taught, self._loss, False

    def own(self, number: int) -> Lessons:
        """The student's answers of a round, scored by the teacher: to as many questions as they fill batches."""
        if number != self._round:
            config, path = self.trainer.config, self.out / f"own_{number}"
            key = {**self.trainer.run, "round": number}
            found = find(path, key)
            if found is None:
                clips = max(config.batch, round(config.own * config.scenes))
                found = _own_answers(self.trainer, self.taught, clips, number)
                found = _scored(found, self.teaching, self.trainer)
                keep(found, path, key)
                self.progress(f"the student has answered about {clips} clips, round {number}")
            self._round, self._own = number, found
        return self._own


def _loss(objective: Callable[..., torch.Tensor], teaching: Teaching, student: Any, reading: Reading) -> torch.Tensor:
    return objective(student, reading, teaching)


def _own_answers(trainer: Trainer, taught: Lessons, clips: int, number: int) -> Lessons:
    """Greedy answers of the student as it is, to the questions of `clips` clips, other ones each round."""
    first = number * clips % max(len(taught) - clips + 1, 1)
    part = slice(first, first + clips)
    student, see, answers = trainer.student.eval(), see_with(trainer.student.model.vision_tower), []
    for maps, pairs in zip(taught.maps[part], taught.pairs[part], strict=True):
        questions = [question for question, _ in pairs]
        raw = see(maps[None]).expand(len(questions), -1, -1, -1)
        said = answer_greedily(student, trainer.packer, raw, questions, max_tokens=trainer.config.max_tokens)
        answers.append(list(zip(questions, said, strict=True)))
    student.train()
    return Lessons(taught.maps[part], answers, taught.chunks)


def _taught(
    truth: Lessons, recipe: Recipe, teaching: Teaching, trainer: Trainer, directory: Path, progress: Progress
) -> Lessons:
    """The lessons with the target's answers, and all teachers' states at them; from disk where they are."""
    config, layers = trainer.config, len(trainer.student.model.language_model.layers)
    key = {
        "speakers": [checkpoint_path(stage) for stage in recipe.stages[-1:]],
        "layers": layers,
        **{name: getattr(config, name) for name in ("scenes", "pairs", "seed", "max_tokens")},
    }
    found = find(directory, key)
    if found is None:
        progress(f"the teacher answers {config.scenes * config.pairs} questions")
        questions = [(clip, question) for clip, pairs in enumerate(truth.pairs) for question, _ in pairs]
        said = iter(answer_ids(answer(load_speaker(recipe), truth.maps, questions, max_tokens=config.max_tokens)))
        answers: Pairs = [[(question, next(said)) for question, _ in pairs] for pairs in truth.pairs]
        found = truth.answering(answers)
    if set(teaching.teachers) - set(found.hidden):
        progress("the teachers read the answers")
        found = _scored(found, teaching, trainer)
        keep(found, directory, key)
    return found


def _scored(lessons: Lessons, teaching: Teaching, trainer: Trainer) -> Lessons:
    layers = len(trainer.student.model.language_model.layers)
    for name, teacher in teaching.teachers.items():
        if name not in lessons.hidden:
            blocks = layer_pairs(layers, len(teacher.model.language_model.layers))
            lessons = score(lessons, name, teacher, trainer.packer, blocks)
    return lessons


def _reference(pairing: Pairing, config: DistilConfig, out: Path, progress: Progress) -> Any:
    """AdaSPEC's reference: a copy of the student distilled by forward KL on the same lessons."""
    path = pairing.reference
    if path is None:
        shared = replace(pairing, lessons=pairing.lessons or out / "lessons")
        plain = replace(config, method="distillspec", loss="fkl", own=0.0)
        path = distil(shared, plain, out / "reference", progress=progress)
    return read_model(path)[0].requires_grad_(False)


def _eyes(recipe: Recipe, student: Any, config: DistilConfig) -> tuple[See, See]:
    """Dense and aligned sight."""
    dense = see_with(student.model.vision_tower)
    if recipe.encoder is None or recipe.adapter is None:
        if config.aligned:
            raise ConfigError("aligned", config.aligned, "0: the recipe has no [encoder] and [adapter]")
        return dense, dense
    encoder = load_event_encoder(checkpoint_path(recipe.encoder))
    return dense, see_through(encoder, load_adapter(checkpoint_path(recipe.adapter)))


def _teacher(path: Path, student: Any, tokenizer: Any) -> Any:
    """A teacher's training model. Raises `ConfigError` unless it shares tokenizer, tower and width with the student."""
    teacher, its_tokenizer = read_model(path)
    if its_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ConfigError("teacher", str(path), "a model with the student's tokenizer")
    mine, its = student.model.vision_tower.state_dict(), teacher.model.vision_tower.state_dict()
    if mine.keys() != its.keys() or not all(torch.equal(mine[name], its[name]) for name in mine):
        raise ConfigError("teacher", str(path), "a model with the student's vision tower: both see the same features")
    widths = [model.config.text_config.hidden_size for model in (student, teacher)]
    if widths[0] != widths[1]:
        raise ConfigError("teacher", str(path), f"a model of the student's width, {widths[0]}")
    return teacher.requires_grad_(False)


def _fresh(trained: Any, seed: int) -> Any:
    """A model of the same architecture with random weights, but the tower."""
    torch.manual_seed(seed)
    model = type(trained)(trained.config)
    torch.nn.init.normal_(model.model.image_newline, std=0.02)
    model.model.vision_tower.load_state_dict(trained.model.vision_tower.state_dict())
    return model
