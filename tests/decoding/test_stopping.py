"""Where an answer ends does not depend on the blocks in which its tokens arrived."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.stopping import Stopper


class Bytes:
    """Tokens are bytes; 256 is a special token that ends the sequence."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token for token in token_ids if token < 256).decode(errors="replace")

    def __len__(self) -> int:
        return 257


def stopper(**sampling: object) -> Stopper:
    return Stopper(Bytes(), (256,), SamplingParams(**sampling))  # type: ignore[arg-type]


def test_end_of_sequence_inside_a_block() -> None:
    assert stopper().cut([65, 256, 66, 67]) == (2, "stop")
    assert stopper().text([65, 256]) == "A"
    assert stopper(ignore_eos=True, max_tokens=3).cut([65, 256, 66, 67]) == (3, "length")


def test_max_tokens_inside_a_block() -> None:
    assert stopper(max_tokens=2).cut([65, 66, 67]) == (2, "length")
    assert stopper(max_tokens=9).cut([65, 66, 67]) == (3, None)


def test_a_stop_string_across_tokens_ends_the_answer_and_is_not_part_of_it() -> None:
    stop = stopper(stop=("é!", "zz"))
    tokens = list("a é! b".encode())
    assert stop.cut(tokens) == (5, "stop")
    assert stop.text(tokens[:5]) == "a "


@given(st.lists(st.integers(97, 100), max_size=30), st.lists(st.integers(1, 5), max_size=30))
def test_blocks_do_not_matter(tokens: list[int], sizes: list[int]) -> None:
    stop = stopper(stop=("abc", "dd"), max_tokens=20)
    whole = stop.cut(tokens)
    checked, result = 0, (len(tokens), None)
    for size in sizes:
        result = stop.cut(tokens[: checked + size], checked)
        if result[1]:
            break
        checked = min(len(tokens), checked + size)
    if result[1] or checked == len(tokens):
        assert result == whole
    text = bytes(tokens).decode()
    first = min((text.find(s) + len(s) for s in ("abc", "dd") if s in text), default=99)
    assert whole[0] == min(first, 20, len(tokens))


@given(st.lists(st.sampled_from([*range(97, 101), 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 256]), max_size=24))
def test_a_stream_shows_only_what_stays_and_pieces_add_up(tokens: list[int]) -> None:
    stop = stopper(stop=("abcabc", "dd"), ignore_eos=True)
    end, reason = stop.cut(tokens)
    final, shown = stop.text(tokens[:end]), ""
    for length in range(end):
        now = stop.shown(tokens[:length])
        assert final.startswith(now) and now.startswith(shown)
        shown = now
    assert "".join(stop.pieces(tokens[:end])) == final
    assert len(stop.pieces(tokens[:end])) == end
    assert reason is None or len(shown) <= len(final)


def test_a_stream_does_not_wait_for_the_end() -> None:
    assert stopper().shown(list(b"hello")) == "hello"
    assert stopper(stop=("zzz",)).shown(list(b"hello")) == "hel"
    assert stopper().shown([*b"caf", 0xC3]) == "caf"
