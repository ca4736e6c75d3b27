"""When an answer ends: end-of-sequence token, stop string or length, wherever inside a block it happens.

A verified block may run past the end of the answer; `Stopper.cut` says how many of its tokens belong to the answer.
What it says is a function of the token sequence alone, so it does not matter in which blocks the tokens arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cascade_runtime.config import SamplingParams

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows for the first bytes of a character
_TOKENS_PER_CHARACTER = 4  # byte-level BPE: one character is at most four tokens


class Tokenizer(Protocol):
    """The two things asked of a tokenizer here."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str: ...

    def __len__(self) -> int: ...


class Detokenizer:
    """The text of one token after another."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._recent: list[
            int
        ] = []  # the last tokens shown, kept as context as vLLM's detokeniser does, and what is new
        self._shown = 0  # of them

    def add(self, tokens: Sequence[int], *, last: bool = False) -> list[str]:
        """What each of these tokens adds; one that ends in the middle of a character adds nothing yet, except as the
        `last`.
        """
        pieces: list[str] = []
        for number, token in enumerate(tokens, start=1):
            before = self._tokenizer.decode(self._recent[: self._shown], skip_special_tokens=True)
            self._recent.append(token)
            now = self._tokenizer.decode(self._recent, skip_special_tokens=True)
            if now.endswith(_UNFINISHED) and not (last and number == len(tokens)):
                pieces.append("")
                continue
            pieces.append(now[len(before) :])
            self._recent = self._recent[self._shown :]
            self._shown = len(self._recent)
        return pieces


class Stopper:
    """The end of one request's answer."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int], sampling: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._eos = frozenset() if sampling.ignore_eos else frozenset(eos_token_ids)
        self._stops = sampling.stop
        self._max_tokens = sampling.max_tokens
        self._window = 1 + _TOKENS_PER_CHARACTER * max((len(stop) for stop in self._stops), default=0)

    def is_end(self, token: int) -> bool:
        """Whether a drafter may stop here: nothing after this token can be part of the answer."""
        return token in self._eos

    def cut(self, tokens: Sequence[int], checked: int = 0) -> tuple[int, str | None]:
        """How many of `tokens` belong to the answer, and why it ended ("stop", "length") or None if it goes on.

        The first `checked` tokens are known not to end it. The ending token itself is part of the answer's tokens.
        """
        for end in range(checked + 1, len(tokens) + 1):
            if tokens[end - 1] in self._eos or self._stop_string(tokens[max(0, end - self._window) : end]):
                return end, "stop"
            if end >= self._max_tokens:
                return end, "length"
        return len(tokens), None

    def text(self, tokens: Sequence[int]) -> str:
        """The answer as text: no special tokens, nothing from the first stop string on."""
        text = self.words(tokens)
        cuts = [text.find(stop) for stop in self._stops if stop in text]
        return text[: min(cuts)] if cuts else text

    def words(self, tokens: Sequence[int]) -> str:
        """Any tokens as text, stop strings and all; special tokens say nothing."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def shown(self, tokens: Sequence[int]) -> str:
        """The text of an answer that goes on, as far as later tokens cannot change it: what a stream may show."""
        text = self.text(tokens).rstrip(_UNFINISHED)
        held_back = max((len(stop) for stop in self._stops), default=1) - 1
        return text[: max(0, len(text) - held_back)]

    def pieces(self, tokens: Sequence[int]) -> tuple[str, ...]:
        """The text each token adds to `text(tokens)`; a token that ends in the middle of a character adds nothing
        yet.
        """
        pieces, left = [], self.text(tokens)
        for piece in self.detokenizer().add(tokens, last=True):
            pieces.append(piece[: len(left)])
            left = left[len(pieces[-1]) :]
        return tuple(pieces)

    def detokenizer(self) -> Detokenizer:
        """What gives the text of each token of an answer that still grows; stop strings are not its business."""
        return Detokenizer(self._tokenizer)

    def _stop_string(self, tail: Sequence[int]) -> bool:
        if not self._stops:
            return False
        text = self.words(tail)
        return any(stop in text for stop in self._stops)
