"""Distillation on toys: each method teaches, runs go on where they stopped, checkpoints load, no held-out scene is
learnt from.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_family import write_toy_family

from cascade_runtime.errors import ConfigError, InputError
from cascade_runtime.evaluation import acceptance
from cascade_runtime.evaluation.acceptance import TargetAnswers, agree, before_and_after, check_held_out
from cascade_runtime.evaluation.simulated import FIRST_CHUNK, Exam, Question
from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.family import build_model, read_model, save_model
from cascade_runtime.training.distil import objectives, run
from cascade_runtime.training.distil.config import METHODS, DistilConfig
from cascade_runtime.training.distil.divergences import LOSSES, fkl
from cascade_runtime.training.distil.lessons import Lessons, draw_questions, find, keep, score
from cascade_runtime.training.distil.objectives import OBJECTIVES, Reading, Teaching
from cascade_runtime.training.distil.run import Pairing, distil
from cascade_runtime.training.distil.speak import answer, answer_ids, load_speaker
from cascade_runtime.training.distil.states import answer_states, layer_states, log_probs
from cascade_runtime.training.language import IGNORED, Packer, answer_greedily, hidden_states
from cascade_runtime.training.pool import HELD_OUT
from cascade_runtime.training.tower import encode
from cluster import cli, cli_distil

SMALL = DistilConfig(
    scenes=4, pairs=2, steps=4, batch=2, learning_rate=2e-3, save_every=2, max_tokens=12, own=0.5, rounds=2
)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def pairing(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Pairing:
    sets = [f'{table}.checkpoint="{family / part}"' for table, part in
            (("encoder", "event_encoder"), ("adapter", "adapter"))]  # fmt: skip
    lessons = tmp_path_factory.mktemp("shared") / "lessons"
    return Pairing(str(family / "random"), str(family / "target"), tuple(sets), lessons)


def _quiet(line: str) -> None:
    pass


def _stop_at(step: int):
    """A listener that stops a run once this step's checkpoint is written."""

    def hear(line: str) -> None:
        if f" step {step}," in line:
            raise KeyboardInterrupt

    return hear


@pytest.fixture(scope="module")
def taught(pairing: Pairing, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a longer run made, whose lessons are those of the module."""
    config = replace(SMALL, steps=40, own=0.1, aligned=0.0, learning_rate=3e-3)
    return distil(pairing, config, tmp_path_factory.mktemp("taught"), progress=_quiet)


def _lessons(pairing: Pairing) -> Lessons:
    assert pairing.lessons is not None
    made_from = json.loads((pairing.lessons / "lessons.json").read_text())["made_from"]
    found = find(pairing.lessons, made_from)
    assert found is not None
    return found


def test_a_few_steps_raise_agreement_on_the_lessons(pairing: Pairing, taught: Path) -> None:
    lessons = _lessons(pairing)
    target, tokenizer = read_model(pairing.teacher)
    packer = Packer(tokenizer)
    flat = [(clip, question, ids) for clip, pairs in enumerate(lessons.pairs) for question, ids in pairs]
    with torch.no_grad():
        raw = encode(target.model.vision_tower, lessons.maps)
    asked = [Question(clip, "", question, "") for clip, question, _ in flat]
    said = TargetAnswers.read(target, packer, raw, asked, [ids for *_, ids in flat])
    itself = agree(target, packer, raw, said)
    assert itself.tokens == 1.0 and itself.ratio == pytest.approx(1.0, abs=1e-5)
    before, after = (agree(read_model(path)[0], packer, raw, said) for path in (pairing.student, taught))
    assert before.tokens < 0.2 and after.tokens > before.tokens + 0.3
    assert after.ratio > before.ratio + 0.1


def test_the_checkpoint_is_one_that_a_recipe_loads(taught: Path) -> None:
    loaded = load_checkpoint(taught)
    assert loaded.language is not None and loaded.vision is not None and loaded.language.num_layers == 1
    assert not [path for path in taught.parent.iterdir() if "partial" in path.name]


def test_the_teachers_answers_are_its_own(pairing: Pairing, taught: Path) -> None:
    """What the engine said with a drafter in front is what the training model says alone, and what it was scored on."""
    lessons = _lessons(pairing)
    target, tokenizer = read_model(pairing.teacher)
    packer = Packer(tokenizer)
    with torch.no_grad():
        raw = encode(target.model.vision_tower, lessons.maps)
    for clip, pairs in enumerate(lessons.pairs):
        alone = answer_greedily(
            target, packer, raw[[clip] * len(pairs)], [question for question, _ in pairs], max_tokens=12
        )
        assert [ids for _, ids in pairs] == alone
    with torch.no_grad():
        log_p = log_probs(target, lessons.hidden["teacher"][:, -1].float(), packer)
    chosen = log_p.argmax(-1)
    for clip, at in enumerate(lessons.positions):
        said = [token for _, ids in lessons.pairs[clip] for token in [*ids, None]]
        agreed = [token is None or token == int(choice) for token, choice in zip(said, chosen[at], strict=True)]
        assert all(agreed)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_to_a_checkpoint(pairing: Pairing, taught: Path, method: str, tmp_path: Path) -> None:
    pairing = replace(pairing, reference=taught)
    if method == "speckd":  # who agrees with nothing learns nothing from what is accepted
        pairing = replace(pairing, student=str(taught))
    made = distil(pairing, replace(SMALL, method=method, steps=2), tmp_path, progress=_quiet)
    before, after = read_model(pairing.student)[0], read_model(made)[0]
    changed = [n for n, w in after.state_dict().items() if not torch.equal(w, before.state_dict()[n])]
    assert any("language_model.layers" in name for name in changed)
    assert not [name for name in changed if "vision_tower" in name]
    assert (tmp_path / "own_1").is_dir() == (method == "distillspec")


def test_a_stopped_run_goes_on_as_if_it_had_not_been(pairing: Pairing, taught: Path, tmp_path: Path) -> None:
    whole = distil(pairing, SMALL, tmp_path / "whole", progress=_quiet)
    with pytest.raises(KeyboardInterrupt):
        distil(pairing, SMALL, tmp_path / "parts", progress=_stop_at(2))
    made = tmp_path / "parts" / whole.name
    assert not made.exists() and (tmp_path / "parts" / "state" / "state.json").is_file()
    steps: list[str] = []
    assert distil(pairing, SMALL, tmp_path / "parts", progress=steps.append) == made
    assert [line.split()[2] for line in steps if " step " in line] == ["4,"]  # the first two were not run again
    one, other = (read_model(path)[0].state_dict() for path in (whole, made))
    assert all(torch.equal(one[name], other[name]) for name in one)
    again: list[str] = []
    assert distil(pairing, SMALL, tmp_path / "parts", progress=again.append) == made and not again
    with pytest.raises(ConfigError, match="loss"):
        distil(pairing, replace(SMALL, loss="tvd"), tmp_path / "parts", progress=_quiet)


def test_massv_moves_the_projector_alone_at_first(pairing: Pairing, taught: Path, tmp_path: Path) -> None:
    config = replace(SMALL, method="massv", steps=8, save_every=1)
    with pytest.raises(KeyboardInterrupt):
        distil(pairing, config, tmp_path, progress=_stop_at(2))
    before = read_model(pairing.student)[0]
    weights = load_file(next((tmp_path / "state").glob("*.safetensors")))
    trained = [*before.model.multi_modal_projector.parameters(), *before.model.language_model.parameters()]
    moved = [not torch.equal(weights[f"weight.{i}"], p) for i, p in enumerate(trained)]
    count = len(list(before.model.multi_modal_projector.parameters()))
    assert all(moved[:count]) and not any(moved[count:])


def test_adaspec_makes_its_reference_where_none_is_given(pairing: Pairing, taught: Path, tmp_path: Path) -> None:
    made = distil(pairing, replace(SMALL, method="adaspec", steps=2), tmp_path, progress=_quiet)
    assert (tmp_path / "reference" / made.name / "model.safetensors").is_file()


# -- objectives by value ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read(pairing: Pairing, taught: Path):
    """(student, reading, teaching) with two teachers: the target, and the student's own twin."""
    student, tokenizer = read_model(pairing.student)
    packer = Packer(tokenizer)
    teachers = {"near": read_model(taught)[0], "teacher": read_model(pairing.teacher)[0]}
    lessons = _lessons(pairing)
    lessons = score(lessons, "near", teachers["near"], packer, [1])
    with torch.no_grad():
        raw = encode(student.model.vision_tower, lessons.maps)
    reading = Reading(packer.pack_ids(lessons.pairs), raw, lessons.hidden)
    return student, reading, Teaching(packer, LOSSES["fkl"], teachers, teachers["near"])


@torch.no_grad()
def test_states_are_those_of_training_and_of_every_block(read) -> None:
    student, reading, teaching = read
    states = layer_states(student, reading.packed, reading.raw, teaching.packer)
    last = hidden_states(student, reading.packed, reading.raw, teaching.packer)
    assert len(states) == 2 and torch.allclose(states[-1], last, atol=1e-5)
    chosen = reading.packed.targets != IGNORED
    assert torch.equal(answer_states(student, reading.packed, reading.raw, teaching.packer)[0], states[0][chosen])


@torch.no_grad()
def test_objectives_are_the_means_that_they_say(read) -> None:
    student, reading, teaching = read
    log_q, log_p = teaching.log_q(student, reading), teaching.log_p(reading, "teacher")
    near = teaching.log_p(reading, "near")
    apart, said = fkl(log_p, log_q), reading.targets
    value = {name: float(each(student, reading, teaching)) for name, each in OBJECTIVES.items()}
    rows = torch.arange(len(said))
    assert value["hard"] == pytest.approx(float(-log_q[rows, said].mean()), rel=1e-4)
    assert value["massv"] == pytest.approx(float(-log_q[rows, log_p.argmax(-1)].mean()), rel=1e-4)
    assert value["distillspec"] == pytest.approx(float(apart.mean()), rel=1e-4)
    agreed = log_q.argmax(-1) == log_p.argmax(-1)
    assert value["speckd"] == pytest.approx(float(apart[agreed].sum()) / max(int(agreed.sum()), 1), rel=1e-4)
    gain = apart - fkl(log_p, near)
    kept = gain >= gain.sort(descending=True).values[int(np.ceil(0.4 * len(gain))) - 1]
    assert value["adaspec"] == pytest.approx(float(apart[kept].mean()), rel=1e-2)
    refused = [1 - float((log_q.argmax(-1) == p.argmax(-1)).float().mean()) for p in (near, log_p)]
    means = [float(fkl(p, log_q).mean()) for p in (near, log_p)]
    weighted = sum(r * m for r, m in zip(refused, means, strict=True)) / sum(refused)
    assert value["cascade_aware"] == pytest.approx(weighted, rel=1e-4)


@torch.no_grad()
def test_a_student_that_is_its_teacher_has_nothing_to_learn(read, pairing: Pairing) -> None:
    _, reading, teaching = read
    for name in ("distillspec", "speckd", "layerwise"):
        twin = float(OBJECTIVES[name](teaching.teachers["teacher"], reading, teaching))
        assert twin == pytest.approx(0.0, abs=2e-3)  # states are kept in float16
    assert float(objectives.layerwise(read[0], reading, teaching)) > float(
        objectives.distillspec(read[0], reading, teaching)
    )


# -- lessons ---------------------------------------------------------------------------------------------------------


def test_no_lesson_comes_from_a_held_out_chunk(pairing: Pairing, taught: Path) -> None:
    lessons = _lessons(pairing)
    assert max(lessons.chunks) < HELD_OUT <= FIRST_CHUNK
    with pytest.raises(InputError, match="chunks"):
        Lessons(lessons.maps, lessons.pairs, (HELD_OUT,))
    others = draw_questions(Packer(read_model(pairing.teacher)[1]), 4, 1, 9, first_chunk=2000).maps.float()
    check_held_out(lessons, others)
    with pytest.raises(InputError, match=r"held-out scenes: got \[1\]"):
        check_held_out(lessons, torch.stack([others[0], lessons.maps[2].float()]))


def test_lessons_are_the_same_each_time_and_on_disk(family: Path, tmp_path: Path) -> None:
    packer = Packer(read_model(family / "target")[1])
    one, other = (draw_questions(packer, 5, 2, 3) for _ in range(2))
    assert torch.equal(one.maps, other.maps) and one.pairs == other.pairs
    assert all(len(pairs) == 2 for pairs in one.pairs)
    states = torch.randn(one.positions[-1].stop, 1, 3).half()
    kept = replace(one, hidden={"teacher": states})
    keep(kept, tmp_path / "lessons", {"seed": 3})
    found = find(tmp_path / "lessons", {"seed": 3})
    assert found is not None and found.pairs == one.pairs and torch.equal(found.hidden["teacher"], states)
    assert torch.equal(found.maps, one.maps) and found.chunks == one.chunks
    assert find(tmp_path / "lessons", {"seed": 4}) is None
    assert find(tmp_path / "nowhere", {"seed": 3}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["lessons"]


def test_answers_come_in_the_order_of_the_questions(pairing: Pairing, taught: Path) -> None:
    lessons = _lessons(pairing)
    asked = [(clip, question) for clip, pairs in enumerate(lessons.pairs) for question, _ in pairs]
    said = [ids for pairs in lessons.pairs for _, ids in pairs]
    order = list(reversed(range(len(asked))))
    given = answer(load_speaker(pairing.recipe), lessons.maps, [asked[i] for i in order], max_tokens=12)
    assert answer_ids(given) == [said[i] for i in order]
    assert all(edge.num_draft_tokens for one in given for edge in one.edges)


# -- what is refused, and the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"method": "magic"}, "method"),
        ({"loss": "mse"}, "loss"),
        ({"steps": 0}, "steps"),
        ({"own": 1.5}, "own"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"scenes": 4, "batch": 8}, "batch"),
    ],
)
def test_impossible_configurations_are_refused(fields, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DistilConfig(**fields)


def test_a_teacher_that_sees_or_spells_otherwise_is_refused(pairing: Pairing, family: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tokenizer = read_model(family / "target")[1]
    save_model(build_model("light", tokenizer), tokenizer, tmp_path / "other_tower")
    with pytest.raises(ConfigError, match="vision tower"):
        distil(replace(pairing, teacher=str(tmp_path / "other_tower")), SMALL, tmp_path, progress=_quiet)
    with pytest.raises(ConfigError, match="tokenizer"):
        distil(replace(pairing, teacher="light"), SMALL, tmp_path, progress=_quiet)
    with pytest.raises(ConfigError, match="one of light, mid, heavy"):
        distil(replace(pairing, student="lite"), SMALL, tmp_path, progress=_quiet)


def test_a_cascade_of_the_family_has_its_middle_for_a_teacher() -> None:
    assert list(Pairing("light", "heavy").teachers("cascade_aware")) == ["mid", "teacher"]
    assert list(Pairing("light", "heavy").teachers("distillspec")) == ["teacher"]
    assert list(Pairing("mid", "heavy").teachers("cascade_aware")) == ["teacher"]
    assert not Pairing("light", "heavy").teachers("hard")


def test_the_command_teaches_and_tells(pairing: Pairing, monkeypatch, capsys, tmp_path: Path) -> None:
    asked = {}

    def taught(pairing, config, out):
        asked.update(pairing=pairing, config=config, out=out)
        return out / "light"

    monkeypatch.setattr(run, "distil", taught)
    monkeypatch.setattr(
        "cascade_runtime.evaluation.acceptance.before_and_after", lambda *a, scenes: iter([f"{scenes} scenes"])
    )
    words = ["train", "distil", "--method", "adaspec", "--loss", "tvd", "--quick", "--out", str(tmp_path)]
    assert cli.main([*words, "--set", "cascade.slots=2"]) == 0
    assert capsys.readouterr().out == f"8 scenes\n{tmp_path / 'light'}\n"
    assert asked["config"].method == "adaspec" and asked["config"].loss == "tvd" and asked["config"].steps == 24
    assert asked["pairing"] == Pairing("light", "heavy", ("cascade.slots=2",))
    assert set(cli_distil.METHODS) == set(METHODS) and set(cli_distil.LOSSES) == set(LOSSES)
    assert cli.main([*words[:2], "--steps", "0"]) == 2


def test_before_and_after_are_told_on_held_out_scenes(pairing: Pairing, taught: Path, monkeypatch) -> None:
    lessons = _lessons(pairing)
    asked = Exam(lessons.maps[:1].float(), np.zeros((1, 7)), (Question(0, "", lessons.pairs[0][0][0], ""),))
    drawn: list[int] = []
    monkeypatch.setattr(acceptance, "draw_exam", lambda scenes, seed: drawn.append(scenes) or asked)
    before, after = before_and_after(pairing, taught, scenes=1)
    shares = [float(line.split("%")[0].split(": ")[1]) for line in (before, after)]
    assert before.startswith("before: ") and after.startswith("after: ") and shares[1] > shares[0] + 3
    assert "(1 answers about 1 held-out scenes)" in after and drawn == [1]
