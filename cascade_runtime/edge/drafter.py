"""`DrafterFacts`: what must be equal for tokens of a drafter on the edge to mean at the core what they mean there."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_runtime.errors import ConfigError, FeatureSpaceError
from cascade_runtime.proto import edge_pb2


@dataclass(frozen=True, kw_only=True)
class DrafterFacts:
    """tokenizer: hash of its entries. ends: token ids that end an answer. space: of the features that it reads, a hash
    of the tower that they are like. Its weights are nobody's business: others draft worse and change no answer.
    """

    tokenizer: str
    vocab_size: int
    ends: tuple[int, ...]
    space: str

    def check(self, core: DrafterFacts | None) -> None:
        """Raise `ConfigError` or `FeatureSpaceError` unless a core with these facts can use what this one drafts."""
        if core is None:
            raise ConfigError("drafter", "one on the edge", 'a core whose lightest level has drafter = "edge"')
        for name in ("vocab_size", "tokenizer", "ends"):
            mine, theirs = getattr(self, name), getattr(core, name)
            if mine != theirs:
                raise ConfigError(f"drafter.{name}", mine, f"the core's, {theirs}")
        if self.space != core.space:
            raise FeatureSpaceError("drafter.space", self.space, f"the core's, {core.space}")

    def told(self) -> edge_pb2.Drafter:
        """As it is told to an edge."""
        return edge_pb2.Drafter(tokenizer=self.tokenizer, vocab_size=self.vocab_size, ends=self.ends, space=self.space)

    @classmethod
    def of(cls, told: edge_pb2.Drafter) -> DrafterFacts:
        """What a core said."""
        return cls(tokenizer=told.tokenizer, vocab_size=told.vocab_size, ends=tuple(told.ends), space=told.space)
