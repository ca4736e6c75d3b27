"""What a `Decoder` asks of a language model besides its passes, for levels that have no weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightlessCache:
    """KV slots that hold nothing."""

    slots: int
    max_len: int
    nbytes: int = 0

    def scrub(self, slot: int) -> None:
        """Nothing to wipe."""


@dataclass(frozen=True)
class WeightlessLanguage:
    """A vocabulary, and slots' bookkeeping."""

    vocab_size: int
    eos_token_ids: tuple[int, ...]
    device: str = "cpu"
    weight_bytes: int = 0

    def new_cache(self, slots: int, max_len: int) -> WeightlessCache:
        """The slots' bookkeeping."""
        return WeightlessCache(slots, max_len)
