"""Which option a text names, and when an open answer is right."""

from __future__ import annotations

import pytest

from cascade_runtime.batch.cider import Cider
from cascade_runtime.batch.question import Question, question_from
from cascade_runtime.batch.scoring import chosen, contained, normalised, same, words

OPTIONS = ("a car", "a red car", "to the left", "none")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" (C) to the left", "C"),
        ("c.", "C"),
        ("D: none of them", "D"),
        ("The best answer is B.", "B"),
        ("Answer: (A)", "A"),
        ("**B**", "B"),
        ("A car passes.", "A"),  # the article is no letter; the words are those of option A
        ("A red car passes.", "B"),  # "car" lies in "red car"
        ("It moves to the left", "C"),
        ("to the left", "C"),
        ("a car or none", None),
        ("It is a tree", None),
        ("E.", None),
        ("", None),
    ],
)
def test_the_option_that_a_text_names(text: str, letter: str | None) -> None:
    assert chosen(text, OPTIONS) == letter


def test_open_answers_are_compared_by_their_words() -> None:
    assert normalised("The  man's two-wheeled cart, 2.5 m!") == ("mans", "2", "wheeled", "cart", "2.5", "m")
    assert same("A Dog.", "dog") and not same("a dog runs", "dog")
    assert contained("There is a dog in the scene", "dog") and not contained("a hotdog", "dog")
    assert (
        contained("three dogs", "3 dogs") and not contained("dogs, three", "three dogs") and not contained("x", "the")
    )


def test_an_answer_may_be_an_options_text_or_its_letter() -> None:
    def answer(options: list[str], given: object) -> str | None:
        row = question_from({"events": "a", "question": "q", "options": options, "answer": given}, 0)
        assert isinstance(row, Question), row
        return row.answer

    assert answer(["a car", "a tree"], "A Tree") == "B"
    assert answer(["a car", "a tree"], "(b)") == "B"
    assert answer(["3", "4"], 4) == "B"
    assert answer(["B", "A"], "A") == "B"  # an option's own text counts before its letter
    assert answer([], 4) == "4"


def test_options_are_asked_under_their_letters() -> None:
    row = question_from({"video": "a.mp4", "question": "Which?", "options": ["x", "y"]}, 3)
    assert isinstance(row, Question) and row.id == "3" and row.answer is None
    assert row.prompt == "Which?\nA. x\nB. y\nAnswer with the letter of the right option."


def test_cider_is_the_authors_number() -> None:
    pairs = [
        ("a dog runs across the road", "a dog runs over the road"),
        ("two cars wait at the red light", "two cars wait at a red light"),
        ("one bar is moving to the right", "one bar moves to the left at a medium pace"),
        ("a man", "a man is riding a bike on the street"),
        ("nothing moves", "a dog runs over the road"),
    ]
    cider = Cider()
    assert cider.score() is None
    for said, right in pairs:
        cider.add(words(said), words(right))
    assert cider.score() == 2.3018  # pycocoevalcap 1.2: CiderScorer(n=4, sigma=6.0)
