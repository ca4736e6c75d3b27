"""`VisualLayout`: which of a video's visual positions show which patch, in every family."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class VisualLayout:
    """A video's positions in order: per step of time `leading` ones that show no patch (a CLS), then a grid of patches,
    row by row; after the last step `trailing` ones (a newline).

    grid: (t, h, w) in patches as the language model gets them, pooled or merged.
    Example: two 4 x 4 frames and a newline are VisualLayout((2, 4, 4), trailing=1), 33 positions.
    """

    grid: tuple[int, int, int]
    leading: int = 0
    trailing: int = 0

    @property
    def total(self) -> int:
        """All positions."""
        t, h, w = self.grid
        return t * (self.leading + h * w) + self.trailing

    def patches(self) -> torch.Tensor:
        """(t, h, w) int64: each patch's place among the visual positions."""
        t, h, w = self.grid
        places = torch.arange(t * (self.leading + h * w)).view(t, self.leading + h * w)
        return places[:, self.leading :].reshape(t, h, w)

    def others(self) -> torch.Tensor:
        """Places that show no patch, ascending."""
        shows = torch.zeros(self.total, dtype=torch.bool)
        shows[self.patches().flatten()] = True
        return (~shows).nonzero().flatten()
