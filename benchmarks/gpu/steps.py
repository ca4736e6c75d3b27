"""Real shapes on a GPU, random weights: how far is a step from the memory's roofline, and what does a cascade bring?

    python -m benchmarks.gpu.steps [--out FILE.json] [--heavy-layers N] [--rounds N] [--context N ...]

steps     a pass of LLaVA-OneVision's language side, 0.5B, 7B, and as many layers of the 72B shape as fit, in
bfloat16: by rows,
          tokens a row and context; eager and as a CUDA graph; its share of the roofline, which is the bytes of
          weights and KV over the bandwidth of a large copy measured here
cascade   heavy alone, 0.5B -> heavy, 7B -> heavy and 0.5B -> 7B -> heavy, one row, executed pass by pass on this one
device.
          Random models never agree, so acceptance is *synthetic*: whether a draft is accepted is drawn from
          --agreement, one chance per edge, the same at every position; only times are measured, and no answer is made
fp8       a product of the 7B's gate-up shape in float8 beside bfloat16, where torch offers it

Random weights tell nothing about answers. Without a GPU everything runs at toy size on the CPU, to show that it runs.
Prints tables and one JSON line with the whole configuration.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2Model

from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.sizes import TEXT_CONFIGS
from cascade_runtime.models.slot_cache import SlotCache

NAMES = {"0.5B": "0.5b", "7B": "7b", "72B": "72b"}
VOCABULARY = 151_646
ROWS, TOKENS = (1, 4, 16), (1, 5, 9)


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


class Pass:
    """One pass of a shape: so many tokens for each of so many rows that hold `context` positions, and the choices
    after."""

    def __init__(self, model: LanguageModel, cache: SlotCache, rows: int, tokens: int, context: int) -> None:
        self.model, self.cache, self.rows, self.tokens, self.context = model, cache, rows, tokens, context
        self.embeds = torch.randn(rows * tokens, model.hidden_size, device=model.device, dtype=model.dtype) * 0.02
        at = torch.arange(context, context + tokens, device=model.device)
        self.positions = at.repeat(rows)
        self.graph: torch.cuda.CUDAGraph | None = None

    def place(self) -> None:
        """Say where it writes; outside of what a graph repeats."""
        self.cache.place([*range(self.rows)], [self.context] * self.rows, [self.tokens] * self.rows)

    def compute(self) -> torch.Tensor:
        """Everything on the device."""
        turns, hidden = self.model._turned(self.positions), self.embeds
        for block in self.model.blocks:
            hidden = block(hidden, turns, self.cache)
        return self.model.logits(hidden).argmax(-1)

    def eager(self) -> None:
        """As a stage runs it."""
        self.place()
        self.compute().tolist()

    def captured(self) -> None:
        """As one CUDA graph; captured at the first call."""
        if self.graph is None:
            self.place()
            self.compute()
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.out = self.compute()
        self.graph.replay()
        self.out.tolist()

    def bytes(self) -> float:
        """What it must read: every weight but the embedding table, and the KV of all rows."""
        head = self.model.lm_head.weight
        weights = sum(block.nbytes for block in self.model.blocks) + head.numel() * head.element_size()
        return weights + self.rows * (self.context + self.tokens) * self.model.kv_bytes_per_token


def median_ms(work: Callable[[], None], rounds: int) -> float:
    """Of `rounds` calls after three to warm up; each ends in a copy to the host."""
    for _ in range(3):
        work()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def bandwidth(device: torch.device) -> float:
    """Bytes per second read and written by a large copy."""
    size = (1 << 30) if device.type == "cuda" else (1 << 26)
    source, target = (
        torch.empty(size, dtype=torch.uint8, device=device),
        torch.empty(size, dtype=torch.uint8, device=device),
    )

    def work() -> None:
        target.copy_(source)
        target[0].item()

    return 2 * size / (median_ms(work, 9) / 1000)


def steps(models: dict[str, LanguageModel], contexts: Sequence[int], rate: float, rounds: int) -> list[dict[str, Any]]:
    """The table of passes."""
    rows = []
    print(f"\n{'':<8}{'rows':>6}{'tokens':>8}{'context':>9}{'eager ms':>10}{'graph ms':>10}{'roofline':>10}")
    for name, model in models.items():
        cuda = model.device.type == "cuda"
        cache = model.new_cache(max(ROWS), max(contexts) + max(TOKENS) + 1)
        for context in contexts:
            for count in ROWS:
                for tokens in TOKENS:
                    one = Pass(model, cache, count, tokens, context)
                    with torch.inference_mode():
                        eager = median_ms(one.eager, rounds)
                        graph = median_ms(one.captured, rounds) if cuda else None
                    share = one.bytes() / rate * 1000 / min(eager, graph or eager)
                    rows.append(
                        {
                            "model": name,
                            "rows": count,
                            "tokens": tokens,
                            "context": context,
                            "eager_ms": round(eager, 3),
                        }
                        | {"graph_ms": graph and round(graph, 3), "roofline_share": round(share, 3)}
                    )
                    told = f"{graph:>10.3f}" if graph else f"{'-':>10}"
                    print(f"{name:<8}{count:>6}{tokens:>8}{context:>9}{eager:>10.3f}{told}{share:>10.2f}", flush=True)
        del cache
    return rows


def cascade(
    models: dict[str, LanguageModel], agreement: dict[str, float], context: int, tokens: int
) -> dict[str, dict[str, float]]:
    """Tokens per second of one row by levels, every pass executed; the best draft length of a few."""
    names = list(models)
    caches = {name: models[name].new_cache(1, context + tokens + 64) for name in names}
    passes: dict[tuple[str, int], Pass] = {}

    def run(name: str, count: int) -> None:
        one = passes.setdefault((name, count), Pass(models[name], caches[name], 1, count, context))
        with torch.inference_mode():
            one.captured() if models[name].device.type == "cuda" else one.eager()

    def propose(levels: Sequence[str], gammas: Sequence[int], want: int, rng: random.Random) -> int:
        """Tokens the last of `levels` adds in one pass, its drafters having run."""
        if len(levels) == 1 or not want:
            run(levels[-1], 1)
            return 1
        drafted, gamma = 0, min(gammas[-1], want)
        while drafted < gamma:
            drafted += propose(levels[:-1], gammas[:-1], gamma - drafted - 1, rng)
        chance = agreement[f"{levels[-2]}-{levels[-1]}"]
        run(levels[-1], drafted + 1)
        accepted = 0
        while accepted < drafted and rng.random() < chance:
            accepted += 1
        return accepted + 1

    out: dict[str, dict[str, float]] = {}
    small, large, heavy = names[0], names[1], names[-1]
    kinds: dict[tuple[str, ...], list[tuple[int, ...]]] = {
        (heavy,): [()],
        (small, heavy): [(3,), (5,), (8,)],
        (large, heavy): [(2,), (4,), (6,)],
        (small, large, heavy): [(3, 6), (4, 8), (6, 12)],
    }
    print(f"\none row, context {context}, synthetic agreement {agreement}")
    for levels, options in kinds.items():
        best = 0.0
        for gammas in options:
            for warm in (True, False):
                rng, made, start = random.Random(0), 0, time.perf_counter()
                while made < (16 if warm else tokens):
                    made += propose(levels, gammas, 64, rng)
                rate = made / (time.perf_counter() - start)
            if rate > best:
                best, chosen = rate, gammas
        name = " -> ".join(levels)
        out[name] = {
            "tokens_per_s": round(best, 2),
            "vs_alone": round(best / out.get(heavy, {"tokens_per_s": best})["tokens_per_s"], 3),
        }
        print(f"  {name:<26}{best:>9.1f} tokens/s{out[name]['vs_alone']:>8.2f}x   drafts {chosen}", flush=True)
    return out


def fp8(device: torch.device, rounds: int) -> dict[str, float] | str:
    """16 rows through the 7B's gate-up product, ms."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9) or not hasattr(torch, "_scaled_mm"):
        return "not on this device"
    x = torch.randn(16, 3584, device=device, dtype=torch.bfloat16)
    weight = torch.randn(2 * 18944, 3584, device=device, dtype=torch.bfloat16)
    one = torch.ones((), device=device)
    x8, weight8 = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)

    def wide() -> None:
        torch.nn.functional.linear(x, weight)[0, 0].item()

    def narrow() -> None:
        torch._scaled_mm(x8, weight8.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)[0, 0].item()

    return {"bfloat16_ms": round(median_ms(wide, rounds), 4), "float8_ms": round(median_ms(narrow, rounds), 4)}


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--heavy-layers", type=int, default=0, help="layers of the 72B shape; default: as fit")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--context", type=int, nargs="+", default=[1024, 6273])
    parser.add_argument(
        "--agreement", type=float, nargs=3, default=[0.65, 0.7, 0.55], help="0.5B-7B, 7B-heavy, 0.5B-heavy"
    )
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    toy, dtype = device.type == "cpu", torch.bfloat16 if device.type == "cuda" else torch.float32
    contexts = [64] if toy else args.context
    torch.manual_seed(0)
    layers = {"0.5B": 24, "7B": 28, "72B": layers_that_fit(device, args.heavy_layers, toy=toy)}
    models = {name: build(name, count, device, dtype, toy=toy) for name, count in layers.items()}
    rate = bandwidth(device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, toy size"
    print(f"{machine}; torch {torch.__version__}; {dtype}; layers {layers}; a copy moves {rate / 1e9:.0f} GB/s")
    keys = ("0.5B-7B", "7B-72B", "0.5B-72B")
    agreement = dict(zip(keys, args.agreement, strict=True))
    result = {
        "machine": machine,
        "torch": torch.__version__,
        "layers": layers,
        "toy": toy,
        "bandwidth_gb_s": round(rate / 1e9, 1),
        "synthetic_agreement": agreement,
        "steps": steps(models, contexts, rate, args.rounds),
        "cascade": cascade(models, agreement, contexts[0], 64 if toy else 256),
        "fp8": fp8(device, args.rounds),
    }
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
