"""`Compressor`: a drafter's visual tokens as fewer ones, by learnt weights, and the gate that chooses how few will do.

    conv        three patches in a row become one: a convolution of width and stride 3 over time, rows and columns
    resampler   two learnt queries attend to all patches
    gate        the mean of the text's embeddings -> one of `OPTIONS`

After SpecVLM's elastic compressor (arXiv 2509.11815), which chooses among the same five for every question. The
weights belong to one drafter, whose embeddings they read and write: `compressor.safetensors` in its directory,
written by `training/compressor.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from cascade_runtime.errors import ConfigError
from cascade_runtime.models.weights_file import fill_module, save_weights

FILE = "compressor.safetensors"
OPTIONS = ("events:25%", "pool:4", "conv", "resampler", "text")
"""What the gate chooses among, as `stages.<name>.sees` writes it."""
STRIDE, QUERIES = 3, 2
_RANK = 64  # of queries and keys


class Compressor(nn.Module):
    """For embeddings of `width` numbers. Shapes: B videos, n patches, D = width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, STRIDE, stride=STRIDE, groups=width)  # over places, then over numbers
        self.blend = nn.Linear(width, width)
        self.queries = nn.Parameter(torch.randn(QUERIES, _RANK) * 0.1)
        self.key, self.value = nn.Linear(width, _RANK), nn.Linear(width, width)
        self.base = nn.Parameter(torch.zeros(QUERIES, width))
        self.gate = nn.Linear(width, len(OPTIONS))
        with torch.no_grad():  # at first conv is the average of three, and the resampler the average of all
            self.mix.weight.fill_(1 / STRIDE)
            nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]
            for part in (self.blend, self.value):
                nn.init.eye_(part.weight)
                nn.init.zeros_(part.bias)

    def conv(self, patches_BnD: torch.Tensor) -> torch.Tensor:
        """(B, ceil(n / 3), D); the last of a group that is not full is repeated."""
        columns = patches_BnD.transpose(1, 2)
        padded = F.pad(columns, (0, -columns.shape[2] % STRIDE), mode="replicate")
        return self.blend(self.mix(padded).transpose(1, 2))

    def resampler(self, patches_BnD: torch.Tensor) -> torch.Tensor:
        """(B, 2, D)."""
        scores = self.queries @ self.key(patches_BnD).transpose(1, 2) / _RANK**0.5
        return scores.softmax(-1) @ self.value(patches_BnD) + self.base

    def choose(self, text_mD: torch.Tensor) -> int:
        """The number among `OPTIONS` for text of m embeddings: the question in its template."""
        return int(self.gate(text_mD.mean(0)).argmax())


def load_compressor(directory: str | Path, width: int, device: torch.device, dtype: torch.dtype) -> Compressor:
    """The compressor of the drafter in `directory`. Raises ConfigError where there is none of this width."""
    file = Path(directory) / FILE
    allowed = f"the weights of a compressor for embeddings of {width} numbers (cascade_runtime.training.compressor)"
    if not file.is_file():
        raise ConfigError(str(file), "no such file", allowed)
    with torch.device("meta"):
        compressor = Compressor(width)
    fill_module(compressor, file, allowed)
    return compressor.to(device=device, dtype=dtype).eval()


def save_compressor(compressor: Compressor, directory: str | Path) -> None:
    """Write the weights beside the drafter's, in float16."""
    save_weights(compressor, Path(directory) / FILE)
