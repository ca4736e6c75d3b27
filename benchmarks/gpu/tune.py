"""Which blocks a product streams its weight fastest with: the sweep behind the rule in `models/kernels.py`.

    python -m benchmarks.gpu.tune [--tokens N] [--only SHAPE ...]

Every product of a block and the head, of the shapes 0.5B, 7B and 72B, by block sizes, warps and stages: GB/s of the
weight, from captured launches over copies that no cache holds. The rule's own choice stands beside the best.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple

import torch

from benchmarks.gpu.shapes import VOCABULARY, bandwidth, median_ms
from cascade_runtime.models.kernels import Blocks, product, sums
from cascade_runtime.models.linear import Linear
from cascade_runtime.models.sizes import TEXT_CONFIGS

OUT, IN, WARPS, STAGES, PARTS = (16, 32, 64), (128, 256, 512), (2, 4), (2, 3, 4, 6), (1, 2, 4, 8)


def shapes() -> dict[str, tuple[int, int, str]]:
    """name -> outputs, inputs, kind."""
    found = {}
    for name, config in TEXT_CONFIGS.items():
        size, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        found[f"{name} qkv"] = (size + 2 * config["num_key_value_heads"] * (size // heads), size, "plain")
        found[f"{name} out"] = (size, size, "cut")
        found[f"{name} gate_up"] = (inner, size, "gated")
        found[f"{name} down"] = (size, inner, "cut")
        found[f"{name} head"] = (VOCABULARY, size, "plain")
    return found


def options(kind: str) -> list[Blocks]:
    """That fit a program's memory."""
    found = []
    for out, size, parts, warps, stages in itertools.product(OUT, IN, PARTS, WARPS, STAGES):
        width = out * (2 if kind == "gated" else 1) + 16
        if (parts == 1 or kind == "cut") and width * size * 2 * stages <= 110_000 and width * size * stages > 16_384:
            found.append(Blocks(out, size, parts, warps, stages))
    return found


def run(x: torch.Tensor, weight: torch.Tensor, kind: str, blocks: Blocks | None) -> torch.Tensor:
    """One product."""
    if kind == "cut":
        return sums(x, Linear(weight), blocks)
    return product(x, Linear(weight), gated=kind == "gated", blocks=blocks)


def compile_all(work: tuple[int, int]) -> None:
    """Fill the compiler's cache: one of twelve shares."""
    tokens, share = work
    x, weight = (torch.zeros(n, 3584, dtype=torch.bfloat16, device="cuda") for n in (tokens, 512))
    jobs = [(kind, blocks) for kind in ("gated", "cut", "plain") for blocks in options(kind)]
    for kind, blocks in jobs[share::12]:
        if blocks.parts == 1:
            run(x, weight, kind, blocks)


def copies(outputs: int, inputs: int, kind: str) -> torch.Tensor:
    """A weight as often as no cache holds it."""
    rows = outputs * (2 if kind == "gated" else 1)
    return torch.randn(max(2, int(400e6 / (rows * inputs * 2))), rows, inputs, dtype=torch.bfloat16, device="cuda")


def rate(weights: torch.Tensor, kind: str, tokens: int, blocks: Blocks | None) -> float:
    """GB/s of the weight."""
    x = torch.randn(tokens, weights.shape[-1], dtype=torch.bfloat16, device="cuda")

    def work() -> None:
        for weight in weights:
            run(x, weight, kind, blocks)

    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return weights.numel() * 2 / median_ms(replay, 3) / 1e6


def main() -> None:
    """Sweep and print the best few of each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(shapes()), default=list(shapes()))
    args = parser.parse_args()
    rate_gb = bandwidth(torch.device("cuda")) / 1e9
    print(f"{torch.cuda.get_device_name()}: a copy moves {rate_gb:.0f} GB/s; {args.tokens} tokens")
    print("outputs, inputs a step, parts, warps, stages: GB/s")
    with ProcessPoolExecutor(12, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_all, [(args.tokens, share) for share in range(12)]))
    for name in args.only:
        outputs, inputs, kind = shapes()[name]
        weights, mine = (
            copies(outputs, inputs, kind),
            Blocks.of(outputs, inputs, gated=kind == "gated", cut=kind == "cut"),
        )
        rates = sorted(
            ((rate(weights, kind, args.tokens, each), each) for each in options(kind)), key=lambda each: -each[0]
        )
        best = "  ".join(f"{astuple(blocks)} {gb:.0f}".replace(" ", "", 4) for gb, blocks in rates[:6])
        print(f"{name:<13} rule {astuple(mine)} {rate(weights, kind, args.tokens, None):.0f}  best {best}", flush=True)


if __name__ == "__main__":
    main()
