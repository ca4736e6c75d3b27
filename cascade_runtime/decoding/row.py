"""What a `Decoder` is given: the prompt of a request, its `Row`, and its share of a pass (`Extension`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.acceptance.law import Law
from cascade_runtime.errors import PromptTooLong


@dataclass(frozen=True)
class PromptEmbeds:
    """A prompt ready to be fed to one model: embeds (n, D), positions (n,) or (3, n), and the position of the
    first answer token. Prompts with the same non-empty `prefix` are equal in their first `prefix_length` positions.
    """

    embeds: torch.Tensor
    positions: torch.Tensor
    next_position: int
    prefix: str = ""
    prefix_length: int = 0

    def __len__(self) -> int:
        return self.embeds.shape[0]


@dataclass(frozen=True)
class States:
    """What a pass computed at positions start, start + 1, .. of a row's slot: values (n, blocks * D), see
    `Decoder.keeps`.
    """

    start: int
    values: torch.Tensor


@dataclass(eq=False)
class Row:
    """One request in one decoder: its slot, its prompt, and what its cache holds.

    tokens: answer tokens in the cache, in the order of their positions. above: per token the one it follows, -1 the
    prompt; None: each follows the one before it.
    """

    slot: int
    prompt: PromptEmbeds
    sampling: SamplingParams
    held: int = 0  # positions in the cache, prompt included
    tokens: list[int] = field(default_factory=list)
    above: list[int] | None = None
    laws: dict[int, Law] = field(default_factory=dict)  # of its last pass's choices, by position, where they are told
    confidence: float = 1.0  # the model's probability of its last choice but noise, where the decoder tells it
    states: States | None = None  # of the last pass, where the decoder keeps them
    poisoned: bool = False  # non-finite numbers were written to the slot
    released: bool = False

    @property
    def prompt_left(self) -> int:
        """Positions of the prompt that are not in the cache."""
        return max(0, len(self.prompt) - self.held)

    def forget(self) -> None:
        """The slot was wiped: begin anew."""
        self.held, self.tokens, self.above, self.poisoned = 0, [], None, False


@dataclass(frozen=True)
class Extension:
    """One row's share of a pass: stand on `prefix` (the whole answer so far), look beyond it along `drafts`.

    parents: drafts that are a tree: per draft the draft that it follows, an earlier one, or -1 for the prefix; None for
    a chain. asked: choices that are wanted, the last so many; None: after the prefix and after each draft. What is not
    asked for and lies in the cache is not fed again, so that a tree grows by its new leaves alone.
    prompt: feed at most so many positions of the prompt; where that leaves some of it, nothing is chosen yet.
    """

    row: Row
    prefix: Sequence[int]
    drafts: Sequence[int] = ()
    prompt: int | None = None
    parents: Sequence[int] | None = None
    asked: int | None = None


def check_fits(prompt_length: int, sampling: SamplingParams, max_len: int) -> None:
    """Raise `PromptTooLong` unless the prompt, the answer and one block of drafts beyond it fit `max_len` positions."""
    if prompt_length + sampling.max_tokens > max_len:
        raise PromptTooLong(
            "prompt + max_tokens",
            f"{prompt_length} + {sampling.max_tokens}",
            f"at most {max_len} positions in a KV slot",
        )
