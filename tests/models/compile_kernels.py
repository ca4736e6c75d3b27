"""Compile every GPU kernel for a Hopper GPU; needs none. test_replay runs it in a process without the interpreter."""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cascade_runtime.models import device_code

PLACES = ("slots", "starts", "counts", "positions", "origins", "sees")
POINTERS = dict.fromkeys(PLACES, "*i64") | {"turns": "*fp32", "sums": "*fp32"}
TENSORS = {"x", "weight", "bias", "out", "held", "queries", "hidden", "normed"} | set(POINTERS)
SMALL = {"OUT": 32, "TOKENS": 16, "IN": 64, "SHARED": 4, "SIZE": 64, "BLOCK": 64, "QUERIES": 16, "KEYS": 64}
SMALL |= {"PART": 128, "PARTS": 8, "TOTAL": 32, "BIASED": True, "GATED": True, "EVEN": False}
NUMBERS = {"query_key_value": {"queries": "i32"}}


def main() -> None:
    """Compile each; an error ends the process."""
    for name in ("product", "added", "query_key_value", "attend", "put_together"):
        kernel = getattr(device_code, name)
        signature, constants = {}, {}
        for parameter in kernel.params:
            if parameter.is_constexpr:
                signature[parameter.name], constants[parameter.name] = "constexpr", SMALL[parameter.name]
            elif parameter.name in NUMBERS.get(name, {}):
                signature[parameter.name] = "i32"
            elif parameter.name in TENSORS or parameter.name == "norms":
                signature[parameter.name] = POINTERS.get(
                    parameter.name, "*fp32" if parameter.name == "norms" else "*bf16"
                )
            else:
                signature[parameter.name] = "fp32" if parameter.name in ("epsilon", "scale") else "i32"
        built = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
        print(name, len(built.asm["cubin"]))


if __name__ == "__main__":
    main()
