"""What an answer tells beyond its text: refused drafts, streamed tokens, HTML, counters that come back from JSON."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threaded_pipeline import threaded_pipeline
from toy_family import toy_events, toy_recipe, toy_requests, write_toy_family

from cascade_runtime.api import Answer, Piece, Rejection, Timings, in_words
from cascade_runtime.api.answer import MAX_REJECTIONS
from cascade_runtime.client import to_events
from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.stopping import Stopper
from cascade_runtime.engine import Engine
from cascade_runtime.errors import InputError
from cascade_runtime.metrics import EdgeCounters

DRAFTERS = ["random", "noisy"]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_family(tmp_path_factory.mktemp("toy"))


def check_rejections(answers: Iterable[Answer], words: Callable[..., str]) -> set[int]:
    """Each is what its stage did not choose; the target's choice is the answer's own token. Gives who refused any."""
    seen = set()
    for answer in answers:
        assert list(answer.rejections) == sorted(answer.rejections, key=lambda each: (each.position, each.by))
        for each in answer.rejections:
            seen.add(each.by)
            assert len(each.token_ids) == len(each.masks) >= 1 and each.text == words(each.token_ids)
            assert all(mask and mask < 1 << each.by for mask in each.masks)
            if each.by == len(answer.levels) - 1:
                assert answer.token_ids[each.position] != each.token_ids[0]
        last = answer.edges[-1]
        refused = sum(len(each.token_ids) for each in answer.rejections if each.by == len(answer.levels) - 1)
        assert refused == last.num_draft_tokens - last.num_accepted_tokens
    return seen


def test_refused_drafts_of_the_engine_are_those_it_refused(family: Path) -> None:
    engine = Engine.load(toy_recipe(family, DRAFTERS))
    words = engine.levels[-1].stopper(SamplingParams()).words
    assert check_rejections(engine.generate(toy_requests(6)), words) == {1, 2}  # type: ignore[arg-type]


def test_refused_drafts_and_streamed_tokens_of_the_stages_are_their_answer_s(family: Path) -> None:
    answers: list[Answer] = []
    with threaded_pipeline(toy_recipe(family, DRAFTERS)) as controller:
        words = controller.language[-1].level.stopper(SamplingParams()).words
        for request in toy_requests(6):
            *pieces, answer = controller.stream(request)
            assert "".join(pieces) == answer.text
            assert sum((piece.tokens for piece in pieces), ()) == answer.token_ids
            assert sum((piece.masks for piece in pieces), ()) == answer.masks
            said = sum((piece.words for piece in pieces), ())
            assert len(said) == len(answer.token_ids) and "".join(said).startswith(answer.text)
            answers.append(answer)
    assert check_rejections(answers, words)  # who got drafts in time depends on the machine


def test_rejections_are_put_in_order_and_bounded() -> None:
    many = [Rejection(position, 1, (7,), (1,)) for position in reversed(range(MAX_REJECTIONS + 5))]
    told = in_words(many, lambda tokens: f"<{tokens}>")
    assert [each.position for each in told] == list(range(MAX_REJECTIONS))
    assert told[0].text == "<(7,)>"


@given(st.text(max_size=12), st.lists(st.integers(1, 4), max_size=12))
def test_words_of_tokens_do_not_depend_on_the_rounds_they_came_in(text: str, sizes: list[int]) -> None:
    stopper = Stopper(Bytes(), (256,), SamplingParams())
    tokens, detokenizer, words, at = list(text.encode()), stopper.detokenizer(), [], 0
    for size in [*sizes, len(tokens)]:
        words += detokenizer.add(tokens[at : at + size], last=at + size >= len(tokens))
        at = min(len(tokens), at + size)
    assert tuple(words) == stopper.pieces(tokens) and "".join(words) == text


class Bytes:
    """Tokens are bytes; 256 ends the sequence."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token for token in token_ids if token < 256).decode(errors="replace")

    def __len__(self) -> int:
        return 257


def test_a_piece_is_a_text_that_survives_the_trip_between_processes() -> None:
    piece = pickle.loads(pickle.dumps(Piece("a c", [5, 9], [7, 4], ["a", " c"])))  # noqa: S301
    assert piece == "a c" and (piece.tokens, piece.masks, piece.words) == ((5, 9), (7, 4), ("a", " c"))


def test_html_marks_tokens_and_escapes_all_that_models_and_stages_say() -> None:
    answer = Answer(
        request_id="r",
        text="<b>&",
        token_ids=(5, 9),
        pieces=("<b>", "&"),
        finish_reason="stop",
        levels=('light"><script>', "heavy"),
        masks=(0b11, 0b10),
        timings=Timings(1.0, 2.0),
    )
    tags: list[str] = []
    titles: list[str] = []
    texts: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            titles.extend(value or "" for name, value in attrs if name == "title")

        def handle_data(self, data: str) -> None:
            texts.append(data)

    Reader().feed(answer._repr_html_())
    assert set(tags) == {"div", "span"} and texts[:2] == ["<b>", "&"]
    assert titles == ['light"><script>, accepted by heavy', "heavy"]
    assert len({line for line in ("solid", "dashed", "dotted") if f"underline {line}" in answer._repr_html_()}) == 2


def test_counters_come_back_from_json_and_nonsense_does_not() -> None:
    edge = EdgeCounters("light-heavy")
    edge.observe(4, 2)
    edge.observe(3, 3, bonus=0)
    told = edge.to_dict()
    assert EdgeCounters.from_dict(told) == edge
    for wrong in (
        None,
        {},
        told | {"edge": 3},
        told | {"spec_decode_num_drafts": True},
        told | {"spec_decode_num_drafts": 2**60},
        told | {"spec_decode_num_tested_tokens_per_pos": [1, -1]},
        told | {"spec_decode_num_tested_tokens_per_pos": "11"},
    ):
        with pytest.raises(InputError):
            EdgeCounters.from_dict(wrong)


def test_at_most_so_many_are_answered_at_a_time(family: Path) -> None:
    engine, together = Engine.load(toy_recipe(family, [])), []
    advance = engine._advance
    engine._advance = lambda k, rows, *rest: (together.append(len(rows)), advance(k, rows, *rest))[1]  # type: ignore
    list(engine.run(toy_requests(6), 2))
    assert max(together) == 2
    list(engine.run(toy_requests(6)))
    assert max(together) == 4


def test_recordings_of_other_libraries_are_the_same_recording() -> None:
    events = toy_events()
    tonic = np.zeros(len(events), [("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?")])
    long = np.zeros(len(events), [("timestamp", "<f8"), ("x", "<u2"), ("y", "<u2"), ("polarity", "i1")])
    tonic["t"], long["timestamp"] = events.t, events.t / 1e6
    for name in "xy":
        tonic[name] = long[name] = getattr(events, name)
    tonic["p"], long["polarity"] = events.p, np.where(events.p, 1, -1)
    columns = [np.asarray(getattr(events, name), np.int64) for name in "txyp"]
    plain = pa.table(dict(zip(["timestamp", "x", "y", "polarity"], columns, strict=True)))
    tables = [np.stack(columns, 1), np.stack([columns[i] for i in (1, 2, 0, 3)], 1)]
    whole = pa.Table.from_batches([events.to_record_batch().slice(0, 100), events.to_record_batch().slice(100)])
    assert to_events(whole) == events
    for source in (tonic, long, plain, *tables):
        read = to_events(source)
        assert np.array_equal(read.t + read.t_offset_us, events.t)
        for name in "xyp":
            assert np.array_equal(getattr(read, name), getattr(events, name))
    for wrong in (np.zeros((4, 3)), np.zeros(4), np.zeros(3, [("t", "i8"), ("x", "i8")]), pa.table({"t": [1]})):
        with pytest.raises(InputError):
            to_events(wrong)
