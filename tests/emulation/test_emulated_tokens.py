"""Who says what: the same in every process, from the file where there is one, and fitted on the other half of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from emulated import END, emulated_table, write_answers

from cascade_runtime.config import SamplingParams, recipe_from_dict
from cascade_runtime.emulation.answers import RecordedAnswers, read_answers
from cascade_runtime.emulation.tokens import NGram, NGramTokens, RecordedTokens, request_number, sampled, tokens_of


def test_an_ngram_says_what_followed_most_often_in_the_longest_context_it_has_seen() -> None:
    bigram = NGram(2, [[1, 2, 3], [1, 2, 4], [1, 2, 4]])
    assert bigram.choice([]) == 1
    assert bigram.choice([2]) == 4
    assert bigram.choice([9, 1]) == 2
    assert bigram.choice([9]) == 1  # never seen: 1 and 2 are as frequent, the smaller id
    trigram = NGram(3, [[1, 2, 3], [5, 2, 4], [5, 2, 4]])
    assert (trigram.choice([1, 2]), trigram.choice([5, 2]), trigram.choice([7, 2])) == (3, 4, 4)
    assert trigram.choice([]) == 5
    assert NGram(1, [[3, 3, 1]]).choice([1, 1]) == 3


ANSWERS = RecordedAnswers(END, (((40, 11), (12,)), ((10, 11, 12), (20, 21))), "")


def test_recorded_stages_say_what_they_said_at_that_position_and_then_the_end() -> None:
    tokens = RecordedTokens(ANSWERS, range(2), seed=0)
    assert [tokens.choice(1, 4, tuple(range(n))) for n in range(5)] == [10, 11, 12, END, END]
    assert [tokens.choice(0, 4, tuple(range(n))) for n in range(3)] == [40, 11, END]
    assert tokens.choice(1, 5, ()) == 20
    assert RecordedTokens(ANSWERS, range(2), seed=1).choice(1, 4, ()) == 20
    assert (tokens.vocab_size, tokens.ends) == (41, (END,))


def test_ngram_drafters_never_see_the_half_that_is_asked() -> None:
    answers = RecordedAnswers(END, ((), ((1, 1, 1), (7, 8, 9), (1, 1, 1), (5, 6, 7))), "")
    tokens = NGramTokens(answers, [2], seed=0)
    asked = {tokens.choice(1, request, ()) for request in range(10)}
    assert asked == {7, 5}
    assert [tokens.choice(0, 0, prefix) for prefix in ((), (7,), (7, 8))] == [1, 1, 1]
    assert {token for context in tokens.drafters[0]._next.values() for token in [context]} == {1}


def test_only_the_levels_that_are_needed_are_read(tmp_path: Path) -> None:
    path = write_answers(tmp_path / "answers.json", [])
    answers = read_answers(str(path), [None, "target"])
    assert answers.by_level[0] == () and len(answers.target) == 20
    assert set(answers.target[0]) <= {10, 11, 12, 13, 14, *range(20, 24), *range(30, 33)}


def test_levels_with_other_tokens_do_not_pass_for_the_same(tmp_path: Path) -> None:
    def tag(**emulation: object) -> str:
        return tokens_of(recipe_from_dict(emulated_table(["light"], emulation)))[2]

    one, two = (str(write_answers(tmp_path / f"{count}.json", ["light"], count)) for count in (4, 5))
    tags = [tag(agreement=[0.5]), tag(agreement=[0.6]), tag(agreement=[0.5], seed=1)]
    tags += [tag(drafters=kind, answers=path) for kind in ("ngram", "recorded") for path in (one, two)]
    assert len(set(tags)) == len(tags)
    assert tag(agreement=[0.5]) == tags[0]


def test_a_seed_counts_only_where_the_answer_is_sampled() -> None:
    request = request_number("what?", "ab12")
    assert request != request_number("what?", "ab13") != request_number("who?", "ab13")
    assert sampled(request, SamplingParams(seed=1)) == sampled(request, SamplingParams(seed=2)) == request
    drawn = {sampled(request, SamplingParams(seed=seed, temperature=0.7)) for seed in range(50)}
    assert len(drawn) == 50


def test_every_process_says_the_same() -> None:
    code = (
        "from cascade_runtime.simulation import Agreement; from cascade_runtime.emulation.tokens import request_number;"
        "n = request_number('what?', 'ab12'); print(n, [Agreement([.5]).choice(0, n, (1,) * k) for k in range(9)])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1 and "[" in said.pop()
