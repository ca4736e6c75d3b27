"""Evaluation: true answers score one, noise scores low, a model agrees with itself, and the report is whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade_runtime.evaluation import evaluate_family
from cascade_runtime.evaluation.recordings import QUESTIONS, computed_facts, near, read_recordings
from cascade_runtime.evaluation.report import print_report
from cascade_runtime.evaluation.simulated import agreement, answers, draw_exam, score
from cascade_runtime.events import Events
from cascade_runtime.models.family import LAYERS, MEMBERS, build_model, build_tokenizer, write_random_family
from cascade_runtime.training.facts import BALANCES, DIRECTIONS, RATES, REGIONS
from cascade_runtime.training.language import Packer
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
    report = evaluate_family(tmp_path, scenes=2)
    assert set(report.simulated) == set(report.aligned) == set(LAYERS) and set(report.megabytes) == set(MEMBERS)
    assert report.questions == 6 and report.simulated["heavy"]["overall"] <= 0.5
    assert "heavy on dense" not in report.agreement and "light on aligned" in report.agreement
    assert json.loads(json.dumps(report.to_dict()))["scenes"] == 2
    print_report(report)
    assert "Accuracy on 2 held-out scenes" in capsys.readouterr().out


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
