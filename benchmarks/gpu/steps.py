"""Real shapes on a GPU, random weights: how far is a step from the memory's roofline, and what does a cascade bring?

    python -m benchmarks.gpu.steps [--out FILE.json] [--only NAME ...] [--heavy-layers N] [--rounds N] [--context N ...]

check     captured passes beside separate launches in float32; in bfloat16, whether the other tokens of a pass matter
steps     a pass of LLaVA-OneVision's language side, 0.5B, 7B, and as many layers of the 72B shape as fit, in bfloat16,
          by rows, tokens a row and context: as separate launches, as a captured graph, and as a stage runs it
          (`Decoder.extend`, choices on the host); the graph's share of the roofline, which is the bytes of weights and
          KV over the bandwidth of a large copy measured here
trees     a pass along trees of several sizes (`trees`)
prefill   the slowest decode step while a prompt of 32 frames (6,273 positions) enters in parts of several sizes
kernels   where the time of a pass of one row and one token goes
cascade   heavy alone, 0.5B -> heavy, 7B -> heavy and 0.5B -> 7B -> heavy, 1 and 8 rows, all on this one device, with
          synthetic acceptance (`synthetic`), each at its best draft length of a few
products  one product by rows, in bfloat16, float8 and 4 bit (`products`)

Random weights tell nothing about answers. Without a GPU everything runs at toy size on the CPU, to show that it runs.
Prints tables and one JSON line with the whole configuration.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.products import products
from benchmarks.gpu.shapes import bandwidth, build, bytes_read, layers_that_fit, median_ms, rows_at
from benchmarks.gpu.synthetic import Chain
from benchmarks.gpu.trees import tree_of, trees
from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.plan import plan
from cascade_runtime.decoding.row import Extension, PromptEmbeds, Row
from cascade_runtime.models.language import LanguageModel

ROWS, TOKENS = (1, 4, 16), (1, 5, 9)
PARTS = ("check", "steps", "trees", "kernels", "cascade", "prefill", "products")


def check(device: torch.device) -> float:
    """A shallow 0.5B in float32: how far captured passes are from separate launches, the worst of several shapes."""
    decoder = Decoder(build("0.5B", 4, device, torch.float32, toy=device.type == "cpu"), slots=4, max_len=700)
    for held in decoder.cache.held:
        held.normal_()
    worst, decoder.keeps = 0.0, (0, decoder.language.num_layers)  # and the states that heads read
    for count, context, tokens in ((1, 0, 1), (1, 600, 5), (3, 64, 9), (4, 65, 2), (1, 500, -40), (3, 126, -7)):
        rows = rows_at(decoder, count, context + 1)
        if tokens > 0:
            asked = [Extension(row, [1], [2] * (tokens - 1 - i % 2)) for i, row in enumerate(rows)]
        else:
            asked = [tree_of(-tokens - i % 2, row, seed=i) for i, row in enumerate(rows)]
        plans = [plan(each, decoder.cache) for each in asked]
        with torch.inference_mode():
            wanted = [decoder._computed(plans, [count]), *(row.states.values for row in rows if row.states)]
            found = decoder._shortened(plans)
        for mine, theirs in zip([found, *(r.states.values for r in rows if r.states)], wanted, strict=True):
            worst = max(worst, 0.0 if mine is None else float((mine - theirs).norm() / theirs.norm()))
        for row in rows:
            decoder.release(row)
    print(f"float32, captured beside separate launches: largest relative difference {worst:.1e}")
    if worst > 1e-4:
        raise SystemExit("a captured pass computes something else")
    return worst


@torch.inference_mode()
def check_batches(device: torch.device) -> bool | None:
    """A shallow 7B in bfloat16: are a token's logits the same bits alone, among other rows, and in a longer pass?"""
    if device.type != "cuda":
        return None
    decoder = Decoder(build("7B", 3, device, torch.bfloat16, toy=False), slots=16, max_len=700)
    rows, same = rows_at(decoder, 16, 500), True
    for held in decoder.cache.held:
        held.normal_()
        held[1:] = held[:1]  # all slots alike
    alone = [decoder._shortened([plan(Extension(rows[0], [5, 6, 7, 8, 9][: i + 1]), decoder.cache)]) for i in range(5)]
    alone = torch.stack([each[0].clone() for each in alone if each is not None])
    for count, drafts in ((1, 4), (3, 4), (16, 4), (8, 11)):
        plans = [
            plan(Extension(row, [5], [6, 7, 8, 9, *range(10, 6 + drafts)]), decoder.cache) for row in rows[-count:]
        ]
        found = decoder._shortened(plans)
        assert found is not None
        together = found.view(count, -1, found.shape[-1])[:, :5]
        same = same and bool((together == alone).all())
    print(f"bfloat16, a token alone, in a block, among other rows: {'the same bits' if same else 'NOT the same bits'}")
    return same


@torch.inference_mode()
def _step(decoder: Decoder, rows: list[Row], tokens: int, rounds: int) -> dict[str, float | None]:
    extensions = [Extension(row, [1], [2 + i for i in range(tokens - 1)]) for row in rows]
    plans = [plan(extension, decoder.cache) for extension in extensions]
    wanted = decoder._computed(plans, [len(rows)])
    told: dict[str, float | None] = {"graph_ms": None, "differs": None}
    told["eager_ms"] = median_ms(lambda: decoder._computed(plans, [len(rows)]).argmax(-1).tolist(), rounds)
    found = decoder._shortened(plans)
    if found is not None:
        told["differs"] = float((found - wanted).norm() / wanted.norm())
        told["graph_ms"] = median_ms(lambda: decoder._shortened(plans).argmax(-1).tolist(), rounds)
    told["extend_ms"] = median_ms(lambda: decoder.extend(extensions), rounds)
    return told


def steps(models: dict[str, LanguageModel], contexts: Sequence[int], rate: float, rounds: int) -> list[dict[str, Any]]:
    """The table of passes."""
    told: list[dict[str, Any]] = []
    titles = ("eager_ms", "graph_ms", "extend_ms", "roofline_share", "differs")
    print(f"\n{'':<6}{'rows':>6}{'tokens':>8}{'context':>9}" + "".join(f"{title:>16}" for title in titles))
    for (name, model), context in itertools.product(models.items(), contexts):
        most = _rows_that_fit(model, context)
        decoder = Decoder(model, slots=most, max_len=context + 80)
        for held in decoder.cache.held:
            held.normal_()
        for count in [count for count in ROWS if count <= most]:
            rows = rows_at(decoder, count, context)
            for tokens in TOKENS:
                found = _step(decoder, rows, tokens, rounds)
                floor = bytes_read(model, count, context + tokens) / rate * 1000
                found["roofline_share"] = floor / (found["graph_ms"] or found["eager_ms"] or floor)
                kept = {title: value and round(value, 4) for title, value in found.items()}
                told.append({"model": name, "rows": count, "tokens": tokens, "context": context} | kept)
                cells = "".join(f"{kept[title] if kept[title] is not None else '-':>16}" for title in titles)
                print(f"{name:<6}{count:>6}{tokens:>8}{context:>9}{cells}", flush=True)
            for row in rows:
                decoder.release(row)
        del decoder
        _empty(model.device)
    return told


def _rows_that_fit(model: LanguageModel, context: int) -> int:
    if model.device.type == "cpu":
        return max(ROWS)
    free = 0.8 * torch.cuda.mem_get_info(model.device)[0]
    return max(count for count in ROWS if count == 1 or count * (context + 80) * model.kv_bytes_per_token < free)


def _empty(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def prefill(models: dict[str, LanguageModel], context: int, positions: int) -> dict[str, dict[str, float]]:
    """A prompt of `positions` enters while four rows decode after `context`: the slowest of their steps, ms, by how
    much of the prompt a pass takes.
    """
    told: dict[str, dict[str, float]] = {}
    print(f"\na prompt of {positions} positions enters beside 4 rows after {context}: ms of the slowest step, of all")
    for name, model in models.items():
        decoder = Decoder(model, slots=5, max_len=positions + 80)
        rows = rows_at(decoder, 4, context)
        embeds = torch.randn(positions, model.hidden_size, dtype=model.dtype, device=model.device) * 0.02
        prompt = PromptEmbeds(embeds, torch.arange(positions, device=model.device), positions)
        told[name] = {}
        for part in (0, 128, 256, 512, 1024, positions):
            for _ in range(2):  # the first to warm up
                new, taken = decoder.admit(prompt, SamplingParams(max_tokens=16)), []
                while (new.prompt_left if part else len(taken) < 10) or not taken:
                    start = time.perf_counter()
                    extra = [Extension(new, [], prompt=part)] if part else []
                    decoder.extend([*(Extension(row, [1]) for row in rows), *extra])
                    taken.append(1000 * (time.perf_counter() - start))
                decoder.release(new)
            told[name][str(part)] = round(max(taken), 2)
            label = f"{part} positions a pass" if part else "no prompt"
            print(f"{name:<6}{label:<26}{max(taken):>10.2f}{sum(taken):>10.1f}", flush=True)
        for row in rows:
            decoder.release(row)
        del decoder, rows
        _empty(model.device)
    return told


def kernels(models: dict[str, LanguageModel], context: int) -> dict[str, dict[str, float]]:
    """Device time by kernel, us of one pass of one row and one token."""
    told: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        if model.device.type != "cuda":
            continue
        decoder = Decoder(model, slots=1, max_len=context + 80)
        extension = Extension(rows_at(decoder, 1, context)[0], [1])
        for _ in range(3):
            decoder.extend([extension])
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(5):
                decoder.extend([extension])
        times = {event.key[:64]: event.self_device_time_total / 5 for event in seen.key_averages()}
        told[name] = {key: round(us, 1) for key, us in sorted(times.items(), key=lambda each: -each[1])[:14]}
        print(f"\n{name}, one token after {context}: {sum(times.values()):.0f} us on the device")
        for key, us in told[name].items():
            print(f"  {us:>9.1f}  {key}", flush=True)
    return told


def cascade(
    models: dict[str, LanguageModel], chances: Sequence[float], context: int, tokens: int
) -> dict[str, dict[str, Any]]:
    """Tokens per second by levels and rows, the best draft length of a few."""
    small, large, heavy = models
    low, high, across = ([chance] for chance in chances)
    kinds: dict[tuple[str, ...], tuple[list[list[float]], list[tuple[int, ...]]]] = {
        (heavy,): ([], [()]),
        (small, heavy): ([across], [(2,), (4,), (7,)]),
        (large, heavy): ([high], [(2,), (4,), (7,)]),
        (small, large, heavy): ([low, high], [(2, 4), (3, 7), (3, 12)]),
    }
    told: dict[str, dict[str, Any]] = {}
    print(f"\ncontext {context}; synthetic agreement {low[0]}, {high[0]}, {across[0]} (--agreement)")
    for rows in (1, 8):
        decoders = {name: Decoder(model, slots=rows, max_len=context + tokens + 80) for name, model in models.items()}
        alone = 0.0
        for levels, (edges, options) in kinds.items():
            rates = {}
            for gammas in options:
                chain = Chain([decoders[name] for name in levels], edges, rows, context)
                rates[gammas] = chain.tokens_per_s(gammas, tokens)
                chain.close()
            best = max(rates, key=lambda gammas: rates[gammas])
            alone = alone or rates[best]
            name = f"{rows} rows: " + " -> ".join(levels)
            told[name] = {
                "tokens_per_s": round(rates[best], 2),
                "vs_alone": round(rates[best] / alone, 3),
                "drafts": best,
            }
            print(f"  {name:<32}{rates[best]:>9.1f} tokens/s{rates[best] / alone:>7.2f}x   drafts {best}", flush=True)
        del decoders
        _empty(models[heavy].device)
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--heavy-layers", type=int, default=0, help="layers of the 72B shape; default: as fit")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--context", type=int, nargs="+", default=[1024, 6273])
    parser.add_argument("--tokens", type=int, default=96, help="of each answer in `cascade`")
    parser.add_argument(
        "--agreement", type=float, nargs=3, default=[0.8, 0.85, 0.75], help="0.5B-7B, 7B-heavy, 0.5B-heavy"
    )
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    toy, dtype = device.type == "cpu", torch.bfloat16 if device.type == "cuda" else torch.float32
    contexts = [64] if toy else args.context
    torch.manual_seed(0)
    layers = {"0.5B": 24, "7B": 28, "72B": layers_that_fit(device, args.heavy_layers, toy=toy)}
    rate = bandwidth(device)
    models = {name: build(name, count, device, dtype, toy=toy) for name, count in layers.items()}
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, toy size"
    print(f"{machine}; torch {torch.__version__}; {dtype}; layers {layers}; a copy moves {rate / 1e9:.0f} GB/s")
    result: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "layers": layers, "toy": toy}
    result |= {"bandwidth_gb_s": round(rate / 1e9, 1), "synthetic_agreement": args.agreement}
    parts: dict[str, Callable[[], Any]] = {
        "check": lambda: {"float32_differs": check(device), "same_bits_in_any_batch": check_batches(device)},
        "steps": lambda: steps(models, contexts, rate, args.rounds),
        "trees": lambda: trees(models, contexts[0], args.rounds),
        "kernels": lambda: kernels(models, contexts[0]),
        "cascade": lambda: cascade(models, args.agreement, contexts[0], 16 if toy else args.tokens),
        "prefill": lambda: prefill(models, contexts[0], 256 if toy else 6273),
        "products": lambda: products(device, args.rounds),
    }
    for name in args.only:
        result[name] = parts[name]()
        if args.out is not None:
            args.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
