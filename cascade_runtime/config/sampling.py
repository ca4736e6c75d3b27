"""`SamplingParams`: how one answer is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from cascade_runtime.config.checks import integer, number
from cascade_runtime.errors import InputError

MAX_TOKENS = 4096


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` one by one, for calls that take them as keywords."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    max_tokens: int
    stop: Sequence[str]
    ignore_eos: bool


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one answer is sampled. Raises `InputError` naming the field that is out of range.

    temperature 0 is greedy. top_k 0 and top_p 1 switch that filter off. With the same seed the same request gives the
    same tokens, whatever drafted them. `stop` strings end the answer and are not part of it. `ignore_eos` goes on to
    max_tokens: for measurements only.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 80
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        number(InputError, "temperature", self.temperature, 0.0, 10.0)
        integer(InputError, "top_k", self.top_k, 0, 1_000_000)
        number(InputError, "top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise InputError("top_p", self.top_p, "a number above 0, up to 1")
        integer(InputError, "seed", self.seed, 0, 2**64 - 1)
        integer(InputError, "max_tokens", self.max_tokens, 1, MAX_TOKENS)
        # A bare string is a sequence of one-letter stops: never what was meant.
        stop = self.stop
        if isinstance(stop, str) or not isinstance(stop, Sequence) or len(stop) > 8:
            raise InputError("stop", stop, "a list of at most 8 strings")
        for text in stop:
            if not isinstance(text, str) or not 1 <= len(text) <= 64:
                raise InputError("stop", text, "strings of 1 to 64 characters")
        object.__setattr__(self, "stop", tuple(stop))
        if not isinstance(self.ignore_eos, bool):
            raise InputError("ignore_eos", self.ignore_eos, "true or false")
