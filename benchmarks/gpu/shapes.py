"""Language models of published shapes with random weights, made on the device, and what a pass of them must read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from transformers import Qwen2Config, Qwen2Model

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.row import PromptEmbeds, Row
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.sizes import TEXT_CONFIGS

NAMES = {"0.5B": "0.5b", "7B": "7b", "72B": "72b"}
VOCABULARY = 151_646


def build(name: str, layers: int, device: torch.device, dtype: torch.dtype, *, toy: bool) -> LanguageModel:
    """A language model of a shape with small random weights, made on the device."""
    shape = TEXT_CONFIGS[NAMES[name]] | {"num_hidden_layers": layers, "tie_word_embeddings": False}
    vocabulary = 512 if toy else VOCABULARY
    if toy:
        heads = shape["num_attention_heads"]
        shape |= {"hidden_size": 8 * heads, "intermediate_size": 32 * heads, "num_hidden_layers": min(layers, 2)}
    config = Qwen2Config(**{**shape, "vocab_size": vocabulary}, max_position_embeddings=32768)
    with torch.device("meta"):
        decoder = Qwen2Model(config).to(dtype)
        head = torch.nn.Linear(config.hidden_size, vocabulary, bias=False, dtype=dtype)
    for module in (decoder, head):
        module.to_empty(device=device)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        module.requires_grad_(False)
    decoder.rotary_emb = type(decoder.rotary_emb)(config).to(device)
    return LanguageModel(decoder, head, vocab_size=vocabulary, family="llava_onevision", eos_token_ids=(0,))


def layers_that_fit(device: torch.device, asked: int, *, toy: bool) -> int:
    """Layers of the 72B shape, what the other two leave free less a fifth for KV and work."""
    if asked:
        return asked
    if toy or device.type != "cuda":
        return 3
    shape = TEXT_CONFIGS["72b"]
    size, inner = shape["hidden_size"], shape["intermediate_size"]
    shared = shape["num_attention_heads"] // shape["num_key_value_heads"]
    per_layer = 2 * (3 * size * inner + 2 * size * size + 2 * size * size // shared)
    free = torch.cuda.mem_get_info(device)[0] * 0.8 - 2 * (8.5e9) - 2 * 2 * VOCABULARY * size
    return max(1, min(shape["num_hidden_layers"], int(free // per_layer)))


def rows_at(decoder: Decoder, rows: int, context: int) -> list[Row]:
    """Rows whose prompts of `context` positions count as fed: their keys and values are whatever lies in the slots."""
    language = decoder.language
    embeds = torch.zeros(context, language.hidden_size, dtype=language.dtype, device=language.device)
    prompt = PromptEmbeds(embeds, torch.arange(context, device=language.device), context)
    taken = [decoder.admit(prompt, SamplingParams(max_tokens=64)) for _ in range(rows)]
    for row in taken:
        row.held = context
    return taken


def bytes_read(model: LanguageModel, rows: int, positions: int) -> float:
    """What a pass must read: every weight but the embedding table, and the KV of all rows."""
    head = model.lm_head.weight
    weights = sum(block.nbytes for block in model.blocks) + head.numel() * head.element_size()
    return weights + rows * positions * model.kv_bytes_per_token


def bandwidth(device: torch.device) -> float:
    """Bytes per second read and written by a large copy."""
    size = (1 << 32) if device.type == "cuda" else (1 << 26)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty(size, dtype=torch.uint8, device=device)

    def work() -> None:
        target.copy_(source)
        target[0].item()

    return 2 * size / (median_ms(work, 9) / 1000)


def median_ms(work: Callable[[], object], rounds: int) -> float:
    """Of `rounds` calls after three to warm up; each ends in a copy to the host."""
    for _ in range(3):
        work()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)
