"""The weights that ship: small enough, made for each other, and able to answer."""

from __future__ import annotations

import pytest
import torch

from cascade_runtime.evaluation.report import see_aligned, see_dense
from cascade_runtime.evaluation.simulated import agreement, answers, draw_exam, score
from cascade_runtime.models import load_checkpoint
from cascade_runtime.models.bundled import LAYERS, MEMBERS, family_path
from cascade_runtime.models.event_encoder import load_adapter, load_event_encoder
from cascade_runtime.models.family import read_model
from cascade_runtime.training.language import Packer


def test_all_weights_together_stay_below_sixty_megabytes() -> None:
    files = [file for member in MEMBERS for file in family_path(member).iterdir()]
    assert sum(file.stat().st_size for file in files) < 60e6
    assert {file.suffix for file in files} == {".safetensors", ".json"}


def test_members_were_made_for_each_other() -> None:
    encoder, adapter = load_event_encoder(family_path("event_encoder")), load_adapter(family_path("adapter"))
    assert adapter.source_space == encoder.space
    tokenizers = {(family_path(name) / "tokenizer.json").read_text() for name in LAYERS}
    assert len(tokenizers) == 1
    for name in LAYERS:
        tower = load_checkpoint(family_path(name), parts=("vision",)).vision
        assert tower is not None and tower.space == adapter.target_space


@pytest.fixture(scope="module")
def exam():
    return draw_exam(14, questions_each=2, seed=3)


def test_heavy_answers_and_light_says_the_same(exam) -> None:
    """28 questions of fixed seeds: the full figures are those of `python -m cascade_runtime.evaluation`."""
    heavy, tokenizer = read_model(family_path("heavy"))
    light, _ = read_model(family_path("light"))
    packer = Packer(tokenizer)
    raw = see_dense(heavy.model.vision_tower, exam.maps)
    said = answers(heavy, packer, raw, exam.questions)
    assert score(exam, packer, said).overall > 0.75
    assert all(20 <= len(ids) <= 60 for ids in said)
    tokens, _ = agreement(light, packer, raw, exam, said)
    assert tokens > 0.9
    shuffled = raw[torch.arange(len(raw)).roll(1)]
    assert score(exam, packer, answers(light, packer, shuffled, exam.questions)).overall < 0.7  # it does look


@torch.no_grad()
def test_aligned_features_are_close_to_dense_ones(exam) -> None:
    heavy, _ = read_model(family_path("heavy"))
    encoder, adapter = load_event_encoder(family_path("event_encoder")), load_adapter(family_path("adapter"))
    dense = see_dense(heavy.model.vision_tower, exam.maps)
    aligned = see_aligned(encoder, adapter, exam.maps)
    cosine = torch.nn.functional.cosine_similarity(dense, aligned, dim=-1).mean(-1)
    assert float(cosine.median()) > 0.9
    predicted = adapter.predicted_cosine(encoder(exam.maps.flatten(0, 1))).view_as(cosine)
    assert float((predicted - cosine).abs().mean()) < 0.05
