"""What a product costs by rows and by how its weight is stored: bfloat16, float8, and 4 bit (fused, and the way that
takes the weight apart first). One weight of the 7B's gate and up, 16 copies in turn so that no cache holds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.gpu.shapes import median_ms

ROWS = (1, 2, 5, 9, 16, 64)
_COPIES, _GROUP = 16, 128
Product = Callable[[torch.Tensor, int], torch.Tensor]


def _bfloat16(weights: list[torch.Tensor]) -> Product:
    return lambda x, i: F.linear(x, weights[i])


def _float8(weights: list[torch.Tensor]) -> Product:
    narrow = [weight.to(torch.float8_e4m3fn) for weight in weights]
    one = torch.ones((), device=weights[0].device)

    def product(x: torch.Tensor, i: int) -> torch.Tensor:
        padded = F.pad(x, (0, 0, 0, -len(x) % 16)).to(torch.float8_e4m3fn)
        return torch._scaled_mm(padded, narrow[i].t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)[: len(x)]

    return product


def _int4(weights: list[torch.Tensor]) -> Product:
    out, size = weights[0].shape
    packed, scales = [], torch.ones(size // _GROUP, out, 2, dtype=torch.bfloat16, device=weights[0].device)
    for _ in weights:
        levels = torch.randint(0, 256, (out, size // 2), dtype=torch.uint8, device=scales.device)
        packed.append(torch.ops.aten._convert_weight_to_int4pack(levels, 8))
    return lambda x, i: torch.ops.aten._weight_int4pack_mm(x, packed[i], _GROUP, scales)


def _taken_apart(weights: list[torch.Tensor]) -> Product:
    """4 bit, the whole weight made bfloat16 before each product: what a library does beyond its fused kernel's rows."""
    out, size = weights[0].shape
    table = torch.linspace(-1, 1, 16, dtype=torch.bfloat16, device=weights[0].device)
    pairs = torch.stack([table.repeat_interleave(16), table.repeat(16)], -1)
    levels = [torch.randint(0, 256, (out, size // 2), dtype=torch.uint8, device=table.device) for _ in weights]

    def product(x: torch.Tensor, i: int) -> torch.Tensor:
        return F.linear(x, F.embedding(levels[i].int(), pairs).flatten(1))

    return product


KINDS: dict[str, Callable[[list[torch.Tensor]], Product]] = {
    "bfloat16": _bfloat16,
    "float8": _float8,
    "4 bit, fused": _int4,
    "4 bit, taken apart": _taken_apart,
}


def products(device: torch.device, rounds: int) -> dict[str, dict[str, float] | str]:
    """ms of one product by kind and rows."""
    if device.type != "cuda":
        return {"all": "not on this device"}
    weights = [torch.randn(2 * 18944, 3584, device=device, dtype=torch.bfloat16) for _ in range(_COPIES)]
    told: dict[str, dict[str, float] | str] = {}
    print(f"\none product, {tuple(weights[0].shape)}, ms by rows\n{'':<20}" + "".join(f"{rows:>9}" for rows in ROWS))
    for kind, make in KINDS.items():
        try:
            product, taken = make(weights), {}
            for rows in ROWS:
                x = torch.randn(rows, 3584, device=device, dtype=torch.bfloat16)

                def work(x: torch.Tensor = x, product: Product = product) -> None:
                    for i in range(_COPIES):
                        out = product(x, i)
                    out[0, 0].item()

                taken[str(rows)] = round(median_ms(work, rounds) / _COPIES, 4)
            told[kind] = taken
            print(f"{kind:<20}" + "".join(f"{each:>9.4f}" for each in taken.values()), flush=True)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            told[kind] = f"not offered: {str(error).splitlines()[0][:100]}"
            print(f"{kind:<20}{told[kind]}", flush=True)
    return told
