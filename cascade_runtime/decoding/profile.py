"""`profile`: what a pass of a decoder costs on this device, by trying a few; a first guess for the policy."""

from __future__ import annotations

import time

import torch

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.decoder import Decoder
from cascade_runtime.decoding.row import Extension, PromptEmbeds
from cascade_runtime.scheduling.cost import CostModel, StepCost

_SHAPES = ((1, 1), (1, 8), (4, 1), (1, 1), (4, 4))  # rows, tokens each
_PROMPT = 8
_GUESS = StepCost(base=0.01, per_row=0.0005, per_token=0.0005)


def profile(decoder: Decoder) -> StepCost:
    """Run a pass of each shape on rows of random embeddings, and give their slots back. The first of each is not timed:
    a GPU compiles and captures it, which takes far longer than a pass.
    """
    model = CostModel(_GUESS)
    language, most = decoder.language, min(4, decoder.free_slots)
    if decoder.cache.max_len < 4 * _PROMPT or not most:
        return _GUESS
    embeds = torch.randn(_PROMPT, language.hidden_size, dtype=language.dtype, device=language.device) * 0.02
    positions = torch.arange(_PROMPT, device=language.device).expand(language.position_axes, -1)
    prompt = PromptEmbeds(embeds, positions if language.position_axes > 1 else positions[0], _PROMPT)
    rows = [decoder.admit(prompt, SamplingParams(max_tokens=16)) for _ in range(most)]
    try:
        decoder.extend([Extension(row, []) for row in rows])
        seen = set[tuple[int, int]]()
        for shape in _SHAPES * 3:
            extensions = [Extension(row, [0], [0] * (shape[1] - 1)) for row in rows[: shape[0]]]
            start = time.perf_counter()
            decoder.extend(extensions)
            if shape in seen:
                tokens = len(extensions) * shape[1]
                model.observe(len(extensions), tokens, _PROMPT, time.perf_counter() - start)
            seen.add(shape)
    finally:
        for row in rows:
            decoder.release(row)
    decoder.passes = decoder.tokens_fed = 0
    return model.fit
