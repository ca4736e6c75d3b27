"""Which blocks a product streams its weight fastest with: the sweep behind the rule in `models/kernels.py`.

    python -m benchmarks.gpu.tune [--tokens N ...]

Every product of a block and the head, of the shapes 0.5B, 7B and 72B, by block sizes, warps and stages: GB/s of the
weight, from captured launches over copies that no cache holds. The rule's own choice stands beside the best.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.gpu.shapes import VOCABULARY, bandwidth, median_ms
from cascade_runtime.models import kernels
from cascade_runtime.models.linear import Linear
from cascade_runtime.models.sizes import TEXT_CONFIGS

OUT, IN, WARPS, STAGES = (16, 32, 64, 128), (64, 128, 256, 512), (1, 2, 4, 8), (2, 3, 4, 6)


def shapes() -> dict[str, tuple[int, int, bool]]:
    """name -> outputs, inputs, gated."""
    found = {}
    for name, config in TEXT_CONFIGS.items():
        size, inner = config["hidden_size"], config["intermediate_size"]
        found[f"{name} out"] = (size, size, False)
        found[f"{name} gate_up"] = (inner, size, True)
        found[f"{name} down"] = (size, inner, False)
        found[f"{name} head"] = (VOCABULARY, size, False)
    return found


def options() -> list[dict[str, int]]:
    """Block sizes that fit a program's memory."""
    found = []
    for out, size, warps, stages in itertools.product(OUT, IN, WARPS, STAGES):
        fits = (out + 16) * size * 2 * stages <= 110_000 and out * size * stages >= 16_384
        if fits and warps * 16 <= max(64, out * 2):
            found.append({"OUT": out, "IN": size, "num_warps": warps, "num_stages": stages})
    return found


def run(x: torch.Tensor, weight: torch.Tensor, gated: bool, blocks: dict[str, int]) -> torch.Tensor:
    """One product with blocks of one's choice."""
    rule = kernels._launch
    kernels._launch = lambda outputs, count: (  # type: ignore[assignment]
        (kernels.triton.cdiv(outputs, blocks["OUT"]),),
        blocks | {"TOKENS": max(16, kernels.triton.next_power_of_2(count))},
    )
    kernels._IN = blocks["IN"]
    try:
        return kernels.product(x, Linear(weight), gated=gated)
    finally:
        kernels._launch, kernels._IN = rule, 128


def compile_all(work: tuple[list[dict[str, int]], int]) -> int:
    """Fill the compiler's cache with both kinds."""
    blocks, tokens = work
    x, weight = (torch.zeros(n, 3584, dtype=torch.bfloat16, device="cuda") for n in (tokens, 512))
    for each in blocks:
        try:
            run(x, weight, True, each)
            run(x, weight, False, each)
        except Exception as error:  # noqa: BLE001  # too large for the device: not an option
            print(each, str(error).splitlines()[0][:80])
    return len(blocks)


def copies(outputs: int, inputs: int, gated: bool) -> torch.Tensor:
    """A weight as often as no cache holds it."""
    rows = outputs * (2 if gated else 1)
    return torch.randn(max(2, int(400e6 / (rows * inputs * 2))), rows, inputs, dtype=torch.bfloat16, device="cuda")


def rate(weights: torch.Tensor, gated: bool, tokens: int, blocks: dict[str, int] | None) -> float:
    """GB/s of the weight."""
    x = torch.randn(tokens, weights.shape[-1], dtype=torch.bfloat16, device="cuda")

    def work() -> None:
        for weight in weights:
            if blocks is None:
                kernels.product(x, Linear(weight), gated=gated)
            else:
                run(x, weight, gated, blocks)

    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return weights.numel() * 2 / median_ms(replay, 5) / 1e6


def main() -> None:
    """Sweep and print the best few of each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="*", help="shapes")
    args = parser.parse_args()
    found = options()
    rate_gb = bandwidth(torch.device("cuda")) / 1e9
    print(f"{torch.cuda.get_device_name()}: a copy moves {rate_gb:.0f} GB/s; {len(found)} options")
    with ProcessPoolExecutor(12, mp_context=multiprocessing.get_context("spawn")) as pool:
        for tokens in args.tokens:
            list(pool.map(compile_all, [(found[i::12], tokens) for i in range(12)]))
    for tokens in args.tokens:
        for name, (outputs, inputs, gated) in shapes().items():
            if args.only and name not in args.only:
                continue
            rates, weights = [], copies(outputs, inputs, gated)
            for blocks in found:
                try:
                    rates.append((rate(weights, gated, tokens, blocks), list(blocks.values())))
                except Exception:  # noqa: BLE001
                    continue
            rates.sort(key=lambda each: -each[0])
            mine = rate(weights, gated, tokens, None)
            best = "   ".join(f"{gb:.0f} {blocks}" for gb, blocks in rates[:6])
            by_in = {size: max((each for each in rates if each[1][1] == size), default=(0, []))[0] for size in IN}
            print(
                f"{tokens:>4} {name:<14} rule {mine:.0f}   {best}   by IN { {k: round(v) for k, v in by_in.items()} }",
                flush=True,
            )


if __name__ == "__main__":
    main()
