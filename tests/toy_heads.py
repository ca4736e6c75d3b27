"""A small random target with heads beside it, and EAGLE computed the slow way: everything anew, without slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2Model
from transformers.cache_utils import DynamicCache

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.row import PromptEmbeds
from cascade_runtime.decoding.trees import Tree
from cascade_runtime.models.eagle import EagleNet
from cascade_runtime.models.exits import ExitHeads
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.medusa import MedusaHeads

VOCAB, WIDTH, LAYERS, END = 24, 32, 4, 23
BLOCKS = (0, 2, 3)
GREEDY = SamplingParams(max_tokens=40)


def toy_target(seed: int = 0) -> LanguageModel:
    """Four layers of width 32; token 23 ends an answer."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCAB + 2,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,
    )
    head = torch.nn.Linear(WIDTH, VOCAB + 2, bias=False).requires_grad_(False)
    decoder = Qwen2Model(config).requires_grad_(False)
    return LanguageModel(decoder, head, vocab_size=VOCAB, family="toy", eos_token_ids=(END,), max_positions=256)


def toy_eagle(kind: str, seed: int = 1) -> EagleNet:
    """A random head of a kind that is not Medusa's."""
    torch.manual_seed(seed)
    net = EagleNet(
        kind,
        hidden_size=WIDTH,
        vocab_size=VOCAB,
        intermediate_size=40,
        num_attention_heads=4,
        num_key_value_heads=2,
        blocks=BLOCKS if kind == "eagle3" else (),
        steps=2 if kind == "hivis" else 0,
    ).requires_grad_(False)
    for parameter in net.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.25)
    return net.eval()


def toy_medusa(heads: int = 3, seed: int = 2) -> MedusaHeads:
    """Random heads."""
    torch.manual_seed(seed)
    made = MedusaHeads(hidden_size=WIDTH, vocab_size=VOCAB, heads=heads).requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.4)
    return made


def toy_exits(seed: int = 4) -> ExitHeads:
    """Random exits behind one block and behind three of four."""
    torch.manual_seed(seed)
    made = ExitHeads(hidden_size=WIDTH, vocab_size=VOCAB, intermediate_size=20, draft_layers=1, middle_layers=3)
    for parameter in made.requires_grad_(False).parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def toy_prompt(seed: int, length: int = 9, prefix: int = 4) -> PromptEmbeds:
    """Random embeddings, the first `prefix` of them as if they were pictures."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(length, WIDTH, generator=generator)
    return PromptEmbeds(embeds, torch.arange(length), length, f"picture {seed}" if prefix else "", prefix)


@dataclass
class Slow:
    """EAGLE without slots: `log_probs(answer, path)` feeds prompt and answer to the target and then to the head, and
    the head's own states along `path`, all at once.
    """

    language: LanguageModel
    net: EagleNet

    def log_probs(self, prompt: PromptEmbeds, answer: list[int], path: list[int]) -> torch.Tensor:
        """Of the token after answer + path."""
        return self.logits(prompt, answer, path).log_softmax(-1)

    def logits(self, prompt: PromptEmbeds, answer: list[int], path: list[int]) -> torch.Tensor:
        states = self.net.taken(target_states(self.language, prompt, answer[:-1], self.net.blocks or (LAYERS,)))
        states = states[prompt.prefix_length :]
        tokens = self.language.embed([*answer, *path])
        embeds = torch.cat([prompt.embeds[prompt.prefix_length + 1 :], tokens])
        known, seen = len(states), prompt.embeds[: prompt.prefix_length]
        for _ in range(len(path)):
            states = torch.cat([states, self._out(seen, states, embeds, known)[-1:]])
        return self.language.logits(self.net.read(self._out(seen, states, embeds, known)[-1:]))[0]

    def _out(self, seen: torch.Tensor, states: torch.Tensor, embeds: torch.Tensor, known: int) -> torch.Tensor:
        count, past, looked, also = len(states), DynamicCache(), 0, dict[str, torch.Tensor]()
        if self.net.looks and len(seen):
            inputs, gist = self.net.seen(seen)
            self.net.look(inputs[None], past)
            looked, also = len(inputs), {} if gist is None else {"gist": gist[None]}
        if self.net.across is not None:
            also = {"known": states[None, :known], "sees": (torch.arange(count) + 1).clamp(max=known)[None]}
        steps = (torch.arange(count) - known + 1).clamp(min=0)
        mask = torch.ones(count, looked + count, dtype=torch.bool).tril(looked)[None, None]
        at = torch.arange(looked, looked + count)
        return self.net(states[None], embeds[None, :count], mask=mask, positions=at, past=past, steps=steps, **also)[0]


def target_states(
    language: LanguageModel, prompt: PromptEmbeds, tokens: list[int], blocks: tuple[int, ...]
) -> torch.Tensor:
    """The target's states at every position, of one pass over all of them."""
    embeds = torch.cat([prompt.embeds, language.embed(tokens)]) if tokens else prompt.embeds
    keep: dict[int, Any] = {}
    hidden = language.forward(
        embeds,
        slots=[0],
        starts=[0],
        counts=[len(embeds)],
        positions=torch.arange(len(embeds)),
        cache=language.new_cache(1, 96),
        keep=keep,
    )
    return torch.cat([{**keep, LAYERS: hidden}[block] for block in blocks], -1)


def paths(tree: Tree) -> dict[tuple[int, ...], float]:
    """Token path -> what its last node is worth."""
    found: list[tuple[int, ...]] = []
    for i, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        assert -1 <= parent < i
        found.append((*(found[parent] if parent >= 0 else ()), token))
    assert len(set(found)) == len(found)
    return dict(zip(found, tree.values, strict=True))


def new_decoder(language: LanguageModel, slots: int = 3) -> Decoder:
    """Slots full of left-over numbers."""
    decoder = Decoder(language, slots=slots, max_len=96)
    for held in decoder.cache.held:
        held.normal_()
    return decoder
