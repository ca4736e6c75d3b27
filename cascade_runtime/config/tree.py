"""`TreeConfig`: the tree that the lightest level drafts, where a recipe asks for one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from cascade_runtime.config.checks import choice, integer, number
from cascade_runtime.errors import ConfigError

KINDS = ("static", "eagle2", "opt", "talon", "duo", "sampled")


@dataclass(frozen=True, kw_only=True)
class TreeConfig:
    """A [tree] table. nodes: looked at by the verifier, at most. depth: of the tree, in tokens. width: leaves of a
    layer that grow ("eagle2", "opt"), and children of each (and "talon"); chains side by side ("duo"). widths: children
    of the chain's first nodes ("static"), or of every node of the first layers ("sampled": children drawn without
    replacement, for acceptance = "traversal"). threshold: expected tokens that a layer must add ("opt"); how probable a
    node must be, beside the best of its layer, to stay ("talon").

    outcomes: while a tree is verified, the drafter foresees so many of what may come of it, each with the tree that
    would follow; 0: it waits. In one process, where nobody works meanwhile, that changes nothing.
    """

    kind: str
    nodes: int = 24
    depth: int = 8
    width: int = 4
    widths: Sequence[int] = (4, 3, 2, 2)
    threshold: float = 0.5
    outcomes: int = 0

    def __post_init__(self) -> None:
        choice("tree.kind", self.kind, KINDS)
        integer(ConfigError, "tree.nodes", self.nodes, 1, 63)
        integer(ConfigError, "tree.depth", self.depth, 1, 32)
        integer(ConfigError, "tree.width", self.width, 1, 16)
        integer(ConfigError, "tree.outcomes", self.outcomes, 0, 32)
        if self.kind == "duo" and self.width * self.depth > self.nodes:
            raise ConfigError("tree.nodes", self.nodes, f"{self.width * self.depth} or more, width * depth")
        if self.kind == "sampled" and self.outcomes:
            raise ConfigError("tree.outcomes", self.outcomes, '0 with "sampled": its children must be drawn afresh')
        number(ConfigError, "tree.threshold", self.threshold, 0, 1 if self.kind == "talon" else 8)
        if isinstance(self.widths, str) or not isinstance(self.widths, Sequence) or not 1 <= len(self.widths) <= 32:
            raise ConfigError("tree.widths", self.widths, "a list of 1 to 32 integers")
        for width in self.widths:
            integer(ConfigError, "tree.widths", width, 1, 16)
        object.__setattr__(self, "widths", tuple(self.widths))
        layers = [*self.widths, *[1] * self.depth][: self.depth]
        most = sum(itertools.accumulate(layers, lambda above, width: above * width))
        if self.kind == "sampled" and most > self.nodes:
            allowed = f"together with tree.depth, {self.nodes} nodes in all (tree.nodes); these are {most}"
            raise ConfigError("tree.widths", self.widths, allowed)
