"""Other adapters than the bundled one: seven ways from event features into a tower's space, by name.

    linear       W x
    mlp          a wide hidden layer
    bottleneck   y = W x, then y + up(gelu(down(norm(y)))): 4096 -> 256 -> 4096 in EventGPT's size; up begins at zero
    houlsby      a frozen adapter of the bundled shape between two bottlenecks (Houlsby et al. 2019, sec. 2.1)
    lora         the same, each of its matrices W + B A, B beginning at zero (Hu et al. 2021, eq. 3)
    attention    y = W x, then self-attention over the patches of a frame
    causal       the same over the patches of this and of all earlier frames: what a stream allows (EAGLE's head is a
                 projection and one causal block, Li et al. 2024)

`hidden` is the width of what is added: hidden layer, bottleneck, rank, or queries, keys and values. Every residual part
begins at zero, so an adapter begins as the linear map (or frozen adapter) that it is built on. Which one is best is a
question of tokens, not of cosines: `python -m benchmarks.distil`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from cascade_runtime.errors import ConfigError
from cascade_runtime.models.event_encoder import Adapter


class _Bottleneck(nn.Module):
    """x + up(gelu(down(norm(x)))); the identity at first."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(F.gelu(self.down(self.norm(x))))


class _Mlp(nn.Sequential):
    def __init__(self, source: int, target: int, hidden: int) -> None:
        super().__init__(nn.Linear(source, hidden), nn.GELU(), nn.Linear(hidden, target))


class _LinearBottleneck(nn.Sequential):
    def __init__(self, source: int, target: int, hidden: int) -> None:
        super().__init__(nn.Linear(source, target), _Bottleneck(target, hidden))


class _Attention(nn.Module):
    """A linear map and one attention layer over x (n, F, P, D): within each frame, or over this and earlier ones."""

    def __init__(self, source: int, target: int, hidden: int, *, over_frames: bool) -> None:
        super().__init__()
        self.over_frames = over_frames
        self.base, self.norm = nn.Linear(source, target), nn.LayerNorm(target)
        self.mixed, self.out = nn.Linear(target, 3 * hidden), nn.Linear(hidden, target)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        clips, frames, patches, _ = y.shape
        queries, keys, values = self.mixed(self.norm(y)).chunk(3, -1)
        mask = None
        if self.over_frames:
            queries, keys, values = (each.flatten(1, 2) for each in (queries, keys, values))
            at = torch.arange(frames, device=x.device).repeat_interleave(patches)
            mask = at[None, :] <= at[:, None]
        found = F.scaled_dot_product_attention(queries, keys, values, mask)
        return y + self.out(found.view(clips, frames, patches, -1))


class _Frozen(nn.Module):
    """The bundled adapter's shape, not to be trained: skip(x) + down(gelu(up(x)))."""

    def __init__(self, source: int, target: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(source, hidden), nn.Linear(hidden, target)
        self.skip = nn.Linear(source, target)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip(x) + self.down(F.gelu(self.up(x)))


class _Houlsby(nn.Module):
    def __init__(self, source: int, target: int, hidden: int, base_hidden: int) -> None:
        super().__init__()
        self.before, self.after = _Bottleneck(source, hidden), _Bottleneck(target, hidden)
        self.base = _Frozen(source, target, base_hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.base(self.before(x)))


class _LowRank(nn.Module):
    """B A x, zero at first."""

    def __init__(self, source: int, target: int, rank: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(source, rank, bias=False), nn.Linear(rank, target, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


class _Lora(nn.Module):
    def __init__(self, source: int, target: int, rank: int, base_hidden: int) -> None:
        super().__init__()
        self.base = _Frozen(source, target, base_hidden)
        self.up, self.down = _LowRank(source, base_hidden, rank), _LowRank(base_hidden, target, rank)
        self.skip = _LowRank(source, target, rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = self.base
        inner = F.gelu(base.up(x) + self.up(x))
        return base.skip(x) + self.skip(x) + base.down(inner) + self.down(inner)


KINDS = ("linear", "mlp", "bottleneck", "houlsby", "lora", "attention", "causal")


def _body(kind: str, source: int, target: int, hidden: int, base_hidden: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(source, target)
    if kind == "mlp":
        return _Mlp(source, target, hidden)
    if kind == "bottleneck":
        return _LinearBottleneck(source, target, hidden)
    if kind == "houlsby":
        return _Houlsby(source, target, hidden, base_hidden)
    if kind == "lora":
        return _Lora(source, target, hidden, base_hidden)
    if kind in ("attention", "causal"):
        return _Attention(source, target, hidden, over_frames=kind == "causal")
    raise ConfigError("adapter kind", kind, f"one of {', '.join(KINDS)}")


class KindAdapter(Adapter):
    """An adapter of one of KINDS, with the gate's head; loaded, saved and used as the bundled one is.

    base_hidden: hidden width of the frozen adapter inside "houlsby" and "lora". Raises ConfigError for another kind.
    """

    def __init__(
        self,
        kind: str,
        *,
        source_dim: int,
        target_dim: int,
        hidden: int,
        base_hidden: int = 256,
        source_space: str = "",
        target_space: str = "",
    ) -> None:
        super().__init__(
            source_dim=source_dim,
            target_dim=target_dim,
            hidden=hidden,
            source_space=source_space,
            target_space=target_space,
        )
        del self.up, self.down, self.skip
        self.kind = kind
        self.settings["base_hidden"] = base_hidden
        self.body = _body(kind, source_dim, target_dim, hidden, base_hidden)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features: (F, P, source_dim) of one recording, or (n, F, P, source_dim) of several. Raises FeatureSpaceError
        for another width.
        """
        clips = features if features.dim() == 4 else features[None]
        checked = self._expect(clips.flatten(0, 1))
        found = self.body(checked.view(clips.shape))
        return found if features.dim() == 4 else found[0]

    def build_on(self, adapter: Adapter) -> None:
        """Take a bundled adapter's weights: the gate's head, and the frozen part where there is one."""
        for part in ("gate_up", "gate_down"):
            getattr(self, part).load_state_dict(getattr(adapter, part).state_dict())
        if isinstance(self.body, _Houlsby | _Lora):
            for part in ("up", "down", "skip"):
                getattr(self.body.base, part).load_state_dict(getattr(adapter, part).state_dict())
