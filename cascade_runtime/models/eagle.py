"""EAGLE's head: one decoder block beside the target, which drafts in the target's own features.

    g_t, the target's state at t, and e(x_{t+1}), the embedding of the token that followed it
      join (2D -> D) -> one block of the Llama kind, with keys and values of its own -> the state at t + 1 as the head
      sees it -> the target's own lm_head -> a guess at x_{t+2}; that state and that guess are the next input

eagle    (Li et al. 2024, EAGLE and EAGLE-2): g is the target's last hidden state, after its last norm, and what the
         head puts out is trained to be that of the next position.
eagle3   (Li et al. 2025): g is made of three blocks' outputs, low, middle and high (fuse, 3D -> D); the head's output
         goes through a norm of its own to lm_head, need not resemble anything, and was trained on its own outputs.
hivis    as eagle, trained on its own outputs, with a bias for each step that it is fed them: what it puts out there is
         ever less like the target's (HiViS; the last bias serves all later steps).
msd      as eagle, but it looks at the visual prefix first: there its input is the embedding alone (MSD).
vispec   as eagle, but two learned queries read the visual prefix: what one found stands before the text as a token,
         what the other found is part of every input (ViSpec).
dream    as eagle, but its block's output attends to the target's states as far as they are known, through a gate of
         tanh that begins shut (DREAM).

The others see text alone: they begin after the visual prefix (as HiViS does), whose states a target that shares
prefixes never computes for most of its rows. Their positions count from there. Embeddings, and eagle3's states, are
normed before they are joined (as in EAGLE-3): their sizes differ by far. The block keeps its input norm (SpecVLM).
`EagleNet` is what is trained, a plain module; `EagleHead` is the same arithmetic over slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from cascade_runtime.errors import ConfigError
from cascade_runtime.models.block import Block
from cascade_runtime.models.head_folder import (
    EAGLE_KINDS,
    check_settings,
    check_target,
    fill,
    head_kind,
    read_settings,
    save_head,
)
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.library import library_class
from cascade_runtime.models.linear import Linear
from cascade_runtime.models.norm import RmsNorm
from cascade_runtime.models.slot_cache import Branches, SlotCache

_LIMITS = {
    "hidden_size": 65536,
    "vocab_size": 1 << 20,
    "intermediate_size": 1 << 18,
    "num_attention_heads": 512,
    "num_key_value_heads": 512,
}
_THETA, _EPSILON, _MOST_STEPS = 10000.0, 1e-6, 32


class Gist(nn.Module):
    """vispec's two queries: the visual prefix (.., P, D) in two vectors (.., 2, D), the second as inputs take it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(2, size) / size**0.5)
        self.key, self.value, self.spread = (nn.Linear(size, size, bias=False) for _ in range(3))

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """One attention, one head."""
        found = F.scaled_dot_product_attention(self.queries.expand(*seen.shape[:-2], -1, -1), *self._of(seen))
        return torch.cat([found[..., :1, :], self.spread(found[..., 1:, :])], -2)

    def _of(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.key(seen), self.value(seen)


class Across(nn.Module):
    """dream's attention from the head's outputs (B, L, D) to the target's states (B, K, D), added through a gate."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads, self.gate = heads, nn.Parameter(torch.zeros(1))
        self.query, self.key, self.value, self.out = (nn.Linear(size, size, bias=False) for _ in range(4))

    def forward(self, out: torch.Tensor, states: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        """sees (B or 1, L): how many of the states each output may attend to, from the first on; at least one."""
        mask = torch.arange(states.shape[1], device=out.device) < sees[:, None, :, None]
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, out), (self.key, states), (self.value, states))
        )
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return out + self.gate.tanh() * self.out(found)


class EagleNet(nn.Module):
    """The head as a module, of a kind of `EAGLE_KINDS`. blocks: the target's three blocks that eagle3 reads.
    steps: how many biases hivis has.

    Shapes: B rows, L positions, K keys, D hidden size.
    """

    def __init__(
        self,
        kind: str = "eagle",
        *,
        hidden_size: int,
        vocab_size: int,
        intermediate_size: int,
        num_attention_heads: int,
        num_key_value_heads: int,
        blocks: Sequence[int] = (),
        steps: int = 0,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "hidden_size": hidden_size,
            "vocab_size": vocab_size,
            "intermediate_size": intermediate_size,
            "num_attention_heads": num_attention_heads,
            "num_key_value_heads": num_key_value_heads,
        }
        check_settings(self.settings, _LIMITS)
        if hidden_size % (2 * num_attention_heads) or num_attention_heads % num_key_value_heads:
            raise ConfigError(
                "num_attention_heads, num_key_value_heads",
                (num_attention_heads, num_key_value_heads),
                f"heads of even size within {hidden_size}, the second a divisor of the first",
            )
        if len(blocks) != (3 if kind == "eagle3" else 0):
            raise ConfigError("blocks", list(blocks), "three of the target's blocks for eagle3, none for others")
        if not (1 <= steps <= _MOST_STEPS if kind == "hivis" else steps == 0):
            raise ConfigError("steps", steps, f"1 to {_MOST_STEPS} for hivis, none for others")
        self.kind, self.blocks, self.looks = kind, tuple(blocks), kind in ("msd", "vispec")
        self.step = nn.Parameter(torch.zeros(steps, hidden_size)) if steps else None
        self.head_dim = hidden_size // num_attention_heads
        layer, norm = (library_class(f"llama.modeling_llama:Llama{name}") for name in ("DecoderLayer", "RMSNorm"))
        config = library_class("llama.configuration_llama:LlamaConfig")(
            **self.settings, num_hidden_layers=1, rms_norm_eps=_EPSILON, attention_bias=False
        )
        config._attn_implementation = "sdpa"
        self.fuse = nn.Linear(3 * hidden_size, hidden_size, bias=False) if self.blocks else None
        self.join = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.embed_norm: nn.Module = norm(hidden_size, eps=_EPSILON)
        self.state_norm: nn.Module | None = norm(hidden_size, eps=_EPSILON) if self.blocks else None
        self.layer: nn.Module = layer(config, 0)
        self.norm: nn.Module | None = norm(hidden_size, eps=_EPSILON) if self.blocks else None
        self.gist = Gist(hidden_size) if kind == "vispec" else None
        self.across = Across(hidden_size, num_attention_heads) if kind == "dream" else None

    def taken(self, states: torch.Tensor) -> torch.Tensor:
        """The target's states (.., D or 3D) as the head takes them, (.., D)."""
        return states if self.fuse is None else self.fuse(states)

    def read(self, out: torch.Tensor) -> torch.Tensor:
        """The head's output as lm_head reads it."""
        return out if self.norm is None else self.norm(out)

    def seen(self, embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The visual prefix (.., P, D) as inputs of a head that looks, (.., Q, D), and what goes into every later input
        (.., 1, D).
        """
        return _as_inputs(self.embed_norm(embeds), self.gist)

    def look(self, inputs_BQD: torch.Tensor, past: Any) -> None:
        """Take in what `seen` gave, as positions 0 .. Q - 1."""
        length = inputs_BQD.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=inputs_BQD.device).tril()[None, None]
        self._computed(inputs_BQD, mask, torch.arange(length, device=inputs_BQD.device), past)

    def forward(
        self,
        states_BLD: torch.Tensor,
        embeds_BLD: torch.Tensor,
        *,
        mask: torch.Tensor,
        positions: torch.Tensor,
        past: Any = None,
        steps: torch.Tensor | int = 0,
        gist: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        sees: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """States (taken) and embeddings of the tokens after them to the head's states of the next positions.

        mask (B, 1, L, K) bool, True where a key is seen; positions (L,); past: the library's cache, whose keys come
        first; steps (L,), or of all: how often the head was fed its own output for that, 0 where the state is the
        target's. gist (B, 1, D): of `seen`, for vispec. known (B, K, D), sees (1, L): for dream, see `Across`.
        """
        states_BLD = states_BLD if self.state_norm is None else self.state_norm(states_BLD)
        x = self.join(torch.cat([states_BLD, self.embed_norm(embeds_BLD)], -1))
        if self.step is not None:
            x = x + self.step[torch.as_tensor(steps).clamp(max=len(self.step) - 1)]
        if gist is not None:
            x = x + gist
        out = self._computed(x, mask, positions, past)
        if self.across is None:
            return out
        assert known is not None and sees is not None
        return self.across(out, known, sees)

    def _computed(self, x: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, past: Any) -> torch.Tensor:
        angles = positions[:, None].float() * _frequencies(self.head_dim, positions.device)
        both = torch.cat([angles, angles], -1)[None]
        turns = (both.cos().to(x.dtype), both.sin().to(x.dtype))
        return self.layer(x, attention_mask=mask, position_embeddings=turns, past_key_values=past)


class EagleHead:
    """An `EagleNet` for inference, over slots of its own: rolling back is lowering a length, as with the target."""

    def __init__(self, net: EagleNet) -> None:
        self.kind, self.blocks, self.hidden_size = net.kind, net.blocks, net.settings["hidden_size"]
        self.looks, self.gist, self.across = net.looks, net.gist, net.across
        self._heads, self._kv_heads = net.settings["num_attention_heads"], net.settings["num_key_value_heads"]
        self._head_dim = net.head_dim
        self._fuse = None if net.fuse is None else Linear(net.fuse.weight.detach())
        self._join = Linear(net.join.weight.detach())
        self._block = Block(net.layer, 0, heads=self._heads, kv_heads=self._kv_heads, head_dim=net.head_dim)
        self._embed_norm = RmsNorm(net.embed_norm)
        self._state_norm = None if net.state_norm is None else RmsNorm(net.state_norm)
        self._norm = None if net.norm is None else RmsNorm(net.norm)
        self._step = None if net.step is None else net.step.detach()
        weight = net.join.weight
        self.device, self.dtype = weight.device, weight.dtype
        self._turns = torch.zeros(0, 1, net.head_dim // 2, dtype=torch.complex64, device=weight.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights held."""
        parts = (self._fuse, self._join, self._block, self._embed_norm, self._state_norm, self._norm)
        modules = [
            parameter for each in (self.gist, self.across) if each is not None for parameter in each.parameters()
        ]
        return sum(part.nbytes for part in (*parts, self._step, *modules) if part is not None)

    def new_cache(self, slots: int, max_len: int) -> SlotCache:
        """Slots for the block's keys and values."""
        angles = torch.arange(max_len, device=self.device)[:, None] * _frequencies(self._head_dim, self.device)
        self._turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        return SlotCache(
            layers=1,
            slots=slots,
            max_len=max_len,
            heads=self._heads,
            kv_heads=self._kv_heads,
            head_dim=self._head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def seen(self, embeds_PD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `EagleNet.seen`."""
        return _as_inputs(self._embed_norm(embeds_PD), self.gist)

    @torch.inference_mode()
    def taken(self, states: torch.Tensor) -> torch.Tensor:
        """As `EagleNet.taken`, of states (N, D or 3D)."""
        return states if self._fuse is None else self._fuse(states)

    @torch.inference_mode()
    def read(self, out: torch.Tensor) -> torch.Tensor:
        """As `EagleNet.read`, of (N, D)."""
        return out if self._norm is None else self._norm(out)

    @torch.inference_mode()
    def forward(
        self,
        states_ND: torch.Tensor | None,
        embeds_ND: torch.Tensor,
        *,
        slots: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        positions: Sequence[int],
        cache: SlotCache,
        branches: Sequence[Branches | None] | None = None,
        step: int = 0,
        gist_ND: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Append each row's inputs to its slot (see `LanguageModel.forward`); the head's states (N, D) after them.

        step: how often the head was fed its own output for them. gist: what it saw, for every input. Without states it
        looks at what `seen` gave. What dream does `across` comes after this.
        """
        cache.place(slots, starts, counts, None, branches)
        turns = self._turns.index_select(0, torch.tensor(positions, device=self.device))
        x = embeds_ND
        if states_ND is not None:
            states = states_ND if self._state_norm is None else self._state_norm(states_ND)
            x = self._join(torch.cat([states, self._embed_norm(embeds_ND)], -1))
        if self._step is not None:
            x = x + self._step[min(step, len(self._step) - 1)]
        if gist_ND is not None:
            x = x + gist_ND
        return self._block(x, turns, cache)


def save_eagle(net: EagleNet, path: str | Path) -> None:
    """Write a folder that `load_eagle` reads."""
    settings: dict[str, Any] = {**net.settings, **({"blocks": list(net.blocks)} if net.blocks else {})}
    if net.step is not None:
        settings["steps"] = len(net.step)
    save_head(path, net.kind, settings, net)


def load_eagle_net(path: str | Path, language: LanguageModel) -> EagleNet:
    """The module of a folder, for this target. Raises ConfigError naming what is wrong with it, or does not fit."""
    settings = read_settings(path, EAGLE_KINDS)
    blocks, steps = settings.pop("blocks", []), settings.pop("steps", 0)
    check_settings(settings, _LIMITS)
    check_target(settings, language)
    if not isinstance(blocks, list) or not all(
        type(each) is int and 0 <= each < language.num_layers for each in blocks
    ):
        raise ConfigError("blocks", blocks, f"a list of the target's blocks, 0..{language.num_layers - 1}")
    if type(steps) is not int:
        raise ConfigError("steps", steps, "an integer")
    with torch.device("meta"):
        net = EagleNet(head_kind(path), **settings, blocks=blocks, steps=steps)
    return fill(net, path, language)


def load_eagle(path: str | Path, language: LanguageModel) -> EagleHead:
    """A head for this target. Raises ConfigError as `load_eagle_net` does."""
    return EagleHead(load_eagle_net(path, language))


def _as_inputs(seen: torch.Tensor, gist: Gist | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    if gist is None:
        return seen, None
    found = gist(seen)
    return found[..., :1, :], found[..., 1:, :]


def _frequencies(head_dim: int, device: torch.device) -> torch.Tensor:
    return _THETA ** -(torch.arange(0, head_dim, 2, device=device).float() / head_dim)
