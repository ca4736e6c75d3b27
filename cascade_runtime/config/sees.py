"""`Sees`: how much of a recording a drafting stage is given, as `stages.<name>.sees` says it.

    all           every visual position (the default, and the only choice of a target)
    text          none: the stage reads the question and the answer so far
    events:K      the K patches in which most events lie
    uniform:K     K patches, evenly spaced
    attention:K   K patches by the attention that the text pays them in this stage; costs a prefill of all (SpecVLM)
    pool:N        squares of N patches of a frame, N = 4, 9, 16 .., each averaged to one
    conv          three patches in a row become one, by learnt weights
    resampler     two learnt queries take what they need of all patches
    elastic       one of events, pool, conv, resampler and text, chosen by a learnt gate that reads the question

K is a number of patches ("events:64") or a share of them ("events:10%"). Positions that show no patch (a newline, a
CLS) stay, but for `text`. Lossless at every choice: a drafter proposes, and the target sees everything.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cascade_runtime.errors import ConfigError

_PLAIN = ("all", "text", "conv", "resampler", "elastic")
_COUNTED = ("events", "uniform", "attention")
_ALLOWED = f"{', '.join(_PLAIN)}, pool:4, pool:9 .., or {', '.join(_COUNTED)} with :<patches> or :<percent>%"
_MOST = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Sees:
    """A method and how much it leaves: a number of patches (`count`), or a `share` of them where count is 0. For
    `pool`, count patches become one.
    """

    method: str
    count: int = 0
    share: float = 0.0

    @classmethod
    def parse(cls, text: object, where: str = "sees") -> Sees:
        """Read the recipe's word. Raises `ConfigError` at `where` for anything else."""
        refused = ConfigError(where, text, _ALLOWED)
        if not isinstance(text, str):
            raise refused
        method, colon, amount = text.partition(":")
        if not colon and method in _PLAIN:
            return cls(method=method)
        found = re.fullmatch(r"(\d{1,7})(%?)", amount, re.ASCII)
        if found is None or method not in ("pool", *_COUNTED):
            raise refused
        number = int(found[1])
        if method == "pool":
            if found[2] or number < 4 or math.isqrt(number) ** 2 != number or number > 1024:
                raise refused
            return cls(method=method, count=number)
        if not 1 <= number <= (100 if found[2] else _MOST):
            raise refused
        return cls(method=method, share=number / 100) if found[2] else cls(method=method, count=number)

    def kept(self, patches: int) -> int:
        """How many of so many patches stay, of a method that keeps some: at least 1 where there is one."""
        return min(patches, self.count or max(1, math.ceil(self.share * patches)))

    @property
    def counts_events(self) -> bool:
        """Whether it asks where the events lie."""
        return self.method in ("events", "elastic")

    @property
    def learnt(self) -> bool:
        """Whether it needs the weights of a compressor."""
        return self.method in ("conv", "resampler", "elastic")
