"""Evaluation: true answers score one, noise scores low, a model agrees with itself, and the report is whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade_runtime.errors import InputError
from cascade_runtime.evaluation import evaluate_family
from cascade_runtime.evaluation.__main__ import main
from cascade_runtime.evaluation.direction import near
from cascade_runtime.evaluation.recordings import QUESTIONS, computed_facts, read_recordings
from cascade_runtime.evaluation.report import print_report
from cascade_runtime.evaluation.simulated import (
    FIRST_CHUNK,
    TOWARD_OR_AWAY,
    WITHIN_45,
    Exam,
    Question,
    agreement,
    answers,
    draw_exam,
    score,
)
from cascade_runtime.events import Events
from cascade_runtime.models.bundled import LAYERS, MEMBERS
from cascade_runtime.models.family import build_model, build_tokenizer, read_model, write_random_family
from cascade_runtime.training.facts import BALANCES, DIRECTIONS, RATES, REGIONS, Facts
from cascade_runtime.training.language import Packer
from cascade_runtime.training.pool import HELD_OUT
from cascade_runtime.training.questions import KINDS, corpus
from cascade_runtime.training.scenes import simulate_scene

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "data" / "events"


@pytest.fixture(scope="module")
def exam():
    return draw_exam(8, questions_each=2, seed=9)


def test_true_answers_score_one_and_wrong_ones_do_not(exam) -> None:
    packer = Packer(build_tokenizer(list(corpus())))
    truth = [packer.encode(question.truth) for question in exam.questions]
    assert score(exam, packer, truth).overall == 1.0
    other = truth[1:] + truth[:1]
    assert score(exam, packer, other).overall < 0.9
    assert score(exam, packer, [[]] * len(truth)).overall == 0.0


def test_an_exam_is_the_same_each_time_and_all_decided(exam) -> None:
    again = draw_exam(8, questions_each=2, seed=9)
    assert exam.questions == again.questions and torch.equal(exam.maps, again.maps)
    assert (exam.rows != -1).all() and len(exam.rows) == 8
    assert {question.kind for question in draw_exam(40, questions_each=3, seed=9).questions} == set(KINDS)


def test_exams_of_other_seeds_share_no_scene(exam) -> None:
    other = draw_exam(8, questions_each=2, seed=1)
    assert not any(torch.equal(a, b) for a in exam.maps for b in other.maps)


@pytest.mark.parametrize(("scenes", "seed", "field"), [(0, 0, "scenes"), (4, -1, "seed"), (4, -6, "seed")])
def test_no_exam_reaches_into_the_training_scenes(scenes, seed, field) -> None:
    assert FIRST_CHUNK >= HELD_OUT  # so that no seed from 0 on does
    with pytest.raises(InputError, match=field):
        draw_exam(scenes, seed=seed)


def test_directions_are_graded_within_45_degrees_and_towards_or_away_apart() -> None:
    packer = Packer(build_tokenizer(list(corpus())))
    still = Facts(subject=0, count=0, direction=-2, speed=-2, rate=0, balance=1, region=9)
    right, away = (Facts(1, 0, DIRECTIONS.index(name), 1, 1, 1, 9) for name in ("right", "away"))
    said = {
        "The motion goes to the right.": right,
        "The motion goes to the lower right.": right,
        "The motion goes to the left.": right,
        "The motion goes inward to the center.": away,
        "There is only sensor noise.": still,
    }
    exam = Exam(
        torch.zeros(5, 2, 3, 64, 64),
        np.array([facts.row() for facts in said.values()]),
        tuple(Question(scene, "direction", "Which way is it moving?", "") for scene in range(5)),
    )
    result = score(exam, packer, [packer.encode(text) for text in said])
    assert result.asked == {"direction": 5, WITHIN_45: 5, TOWARD_OR_AWAY: 1}
    assert result.right == {"direction": 3, WITHIN_45: 4, TOWARD_OR_AWAY: 1}
    assert result.overall == result.per_kind()["direction"]  # the two other views are not counted again


def test_a_model_agrees_with_itself_and_not_with_any_tokens(exam) -> None:
    packer = Packer(build_tokenizer(list(corpus())))
    torch.manual_seed(0)
    model = build_model("light", packer.tokenizer).eval()
    raw = torch.randn(8, 2, 64, 128)
    said = [ids[:5] for ids in answers(model, packer, raw, exam.questions)]
    tokens, _ = agreement(model, packer, raw, exam, said)
    assert tokens >= 5 / 6  # all but the end, which these cut answers do not have
    assert agreement(model, packer, raw, exam, [[5, 6, 7, 8, 9]] * len(said))[0] < 0.2


def test_the_report_is_whole_and_is_json(tmp_path, capsys) -> None:
    write_random_family(tmp_path, seed=1)
    report = evaluate_family(tmp_path, scenes=2, seed=5)
    assert set(report.simulated) == set(report.aligned) == set(LAYERS) and set(report.megabytes) == set(MEMBERS)
    assert report.questions == 6 and report.simulated["heavy"]["overall"] <= 0.5
    assert sum(report.asked[kind] for kind in KINDS if kind in report.asked) == 6
    heavy, _ = read_model(tmp_path / "heavy")
    assert report.parameters["heavy"] == sum(weights.numel() for weights in heavy.parameters())
    assert report.parameters["adapter"] < report.parameters["light"] < report.parameters["mid"]
    assert "heavy on dense" not in report.agreement and "light on aligned" in report.agreement
    assert json.loads(json.dumps(report.to_dict()))["seed"] == 5
    print_report(report)
    out = capsys.readouterr().out
    assert "Accuracy on 2 held-out scenes of seed 5, dense features (%)" in out
    assert f"| heavy | {report.parameters['heavy'] / 1e6:.2f} M | " in out
    assert f"| heavy | {100 * report.simulated['heavy']['overall']:.1f} | " in out


def test_the_command_refuses_what_it_cannot_grade(monkeypatch, capsys) -> None:
    for arguments, word in ((["--seed", "-6"], "seed"), (["--recordings", "/no/such/folder"], "recordings")):
        monkeypatch.setattr("sys.argv", ["evaluation", *arguments])
        with pytest.raises(SystemExit):
            main()
        assert f"{word}: got" in capsys.readouterr().err


def test_facts_computed_from_events_are_those_of_the_simulator() -> None:
    agreed = compared = 0
    for seed in range(12):
        scene = simulate_scene(seed, kind="shift")
        computed = computed_facts(scene.events)
        for name in ("region", "rate", "balance"):
            assert computed.get(name, -1) == getattr(scene.facts, name)
        if "direction" in computed and scene.facts.speed == 1:
            compared += 1
            agreed += computed["direction"] == scene.facts.direction
    assert compared >= 2 and agreed >= 0.7 * compared


def test_near_directions_are_neighbours_round_the_circle() -> None:
    assert [said for said in range(len(DIRECTIONS)) if near(said, 0)] == [0, 1, 7]
    assert not near(None, 0)
    assert [said for said in range(len(DIRECTIONS)) if near(said, 8)] == [8]  # towards has no neighbour


def test_computed_facts_of_a_hand_made_recording() -> None:
    x = np.full(100, 5)
    events = Events(np.arange(100), x, x, np.ones(100, dtype=int), width=100, height=20)
    facts = computed_facts(events)
    assert REGIONS[facts["region"]] == "upper left" and BALANCES[facts["balance"]] == "mostly ON"
    assert RATES[facts["rate"]] == "low" and "direction" not in facts


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not beside this checkout")
def test_real_recordings_become_maps_and_facts() -> None:
    recordings = list(read_recordings(RECORDINGS))
    assert len(recordings) >= 7
    for recording in recordings:
        assert recording.maps.shape == (2, 3, 64, 64) and bool(recording.maps.isfinite().all())
        assert set(recording.facts) <= set(QUESTIONS)
        assert all(0 <= value < len(DIRECTIONS) for value in recording.facts.values())
