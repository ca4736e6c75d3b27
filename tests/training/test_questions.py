"""Questions: every answer states the facts it was made from, and grading reads them back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade_runtime.models.family import SPECIAL_TOKENS, build_tokenizer
from cascade_runtime.training.facts import AMBIGUOUS, CLASSES, NONE, SUBJECTS, Facts
from cascade_runtime.training.questions import ASKED, KINDS, WORDINGS, ask, corpus, grade, read_facts


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    """Facts that a scene can have, all decided."""
    subject = draw(st.integers(0, len(SUBJECTS) - 1))
    rest = {name: draw(st.integers(0, len(CLASSES[name]) - 1)) for name in ("speed", "rate", "balance", "region")}
    if SUBJECTS[subject] == "nothing":
        return Facts(subject=0, count=0, direction=NONE, **{**rest, "speed": NONE, "region": 9})
    moving = SUBJECTS[subject] == "camera"
    direction = draw(st.integers(0, 9 if moving else 7))
    return Facts(subject=subject, count=0 if moving else draw(st.integers(1, 3)), direction=direction, **rest)


@given(facts())
def test_the_true_answer_is_graded_right_in_every_wording(known: Facts) -> None:
    pairs = list(ask(known))
    assert len(pairs) == len(WORDINGS)
    for wording, answer in pairs:
        assert grade(wording.kind, answer, known) == 1.0, answer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(list(corpus()))


@given(facts())
def test_answers_take_twenty_to_eighty_tokens(tokenizer, known: Facts) -> None:
    lengths = [len(tokenizer.encode(answer).ids) for _, answer in ask(known)]
    assert min(lengths) >= 20 and max(lengths) <= 80


@given(facts())
def test_answers_state_nothing_that_is_not_so(known: Facts) -> None:
    for _, answer in ask(known):
        for name, value in read_facts(answer).items():
            assert value == getattr(known, name), (name, answer)


@given(facts(), st.sampled_from(["direction", "speed", "rate", "balance", "region"]))
def test_a_wrong_fact_is_graded_wrong(known: Facts, name: str) -> None:
    if getattr(known, name) < 0:
        return
    other = {**{n: getattr(known, n) for n in Facts.names()}, name: (getattr(known, name) + 1) % 3}
    wrong = Facts(**other)
    if getattr(wrong, name) == getattr(known, name):
        return
    for wording, answer in ask(wrong):
        if wording.kind == name:
            assert grade(name, answer, known) == 0.0
        if wording.kind == "describe":
            stated = [fact for fact in ASKED["describe"] if getattr(known, fact) >= 0]
            assert grade("describe", answer, known) == pytest.approx(1 - 1 / len(stated))


def test_nothing_is_asked_about_what_is_ambiguous() -> None:
    known = Facts(subject=2, count=1, direction=0, speed=0, rate=AMBIGUOUS, balance=0, region=3)
    kinds = {wording.kind for wording, _ in ask(known)}
    assert "rate" not in kinds and "direction" in kinds
    for _, answer in ask(known):
        assert "rate" not in read_facts(answer)


def test_every_kind_has_several_wordings_with_answers_of_their_own() -> None:
    known = Facts(subject=3, count=2, direction=7, speed=2, rate=3, balance=1, region=8)
    for kind in KINDS:
        answers = [answer for wording, answer in ask(known) if wording.kind == kind]
        assert len(answers) >= 3 and len(set(answers)) == len(answers)
    questions = [question for wording in WORDINGS for question in wording.questions]
    assert len(set(questions)) == len(questions) >= 56


def test_grading_reads_an_empty_or_contradictory_answer_as_wrong() -> None:
    known = Facts(subject=3, count=2, direction=0, speed=2, rate=3, balance=1, region=8)
    for kind in KINDS:
        assert grade(kind, "", known) == 0.0
    assert grade("direction", "It moves to the right and to the left.", known) == 0.0
    assert grade("direction", "It moves to the right.", known) == 1.0


def test_the_tokenizer_spells_any_text_and_answers_in_few_tokens() -> None:
    tokenizer = build_tokenizer(list(corpus()))
    for text in ("Что движется? 何が動く?", "a\n\n b\t<|im_end|", "ñandú 🚗"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    known = Facts(subject=3, count=2, direction=7, speed=2, rate=3, balance=1, region=8)
    lengths = [len(tokenizer.encode(answer).ids) for _, answer in ask(known)]
    assert min(lengths) >= 18 and max(lengths) <= 80
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(tokenizer.get_vocab_size() - len(ids), tokenizer.get_vocab_size()))
