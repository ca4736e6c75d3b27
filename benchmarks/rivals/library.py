"""transformers: `generate` (batched, padded on the left) and assisted generation (batch 1, as the library has it)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.rivals.prompts import Task, tokens_of
from cascade_runtime.config import SamplingParams


class Library:
    """The library over text models. drafter None: plain `generate`."""

    def __init__(self, target: Path, drafter: Path | None = None, num_assistant_tokens: int | None = None) -> None:
        from transformers import Qwen2ForCausalLM

        self.model: Any = Qwen2ForCausalLM.from_pretrained(target, dtype=torch.float32, local_files_only=True).eval()
        self.end: int = self.model.generation_config.eos_token_id
        self.extra: dict[str, Any] = {}
        if drafter is not None:
            assistant: Any = Qwen2ForCausalLM.from_pretrained(
                drafter, dtype=torch.float32, local_files_only=True
            ).eval()
            if num_assistant_tokens is not None:  # None leaves the library's own schedule
                assistant.generation_config.num_assistant_tokens = num_assistant_tokens
                assistant.generation_config.num_assistant_tokens_schedule = "constant"
                assistant.generation_config.assistant_confidence_threshold = 0.0
            self.extra["assistant_model"] = assistant

    @torch.inference_mode()
    def __call__(self, tasks: Sequence[Task], sampling: SamplingParams) -> tuple[float, list[list[int]]]:
        """Seconds, and the answers' token ids."""
        start = time.perf_counter()
        width = max(len(task.ids) for task in tasks)
        ids = torch.tensor([[self.end] * (width - len(task.ids)) + task.ids for task in tasks])
        mask = torch.tensor([[0] * (width - len(task.ids)) + [1] * len(task.ids) for task in tasks])
        wants = (
            {"do_sample": True, "temperature": sampling.temperature} if sampling.temperature else {"do_sample": False}
        )
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_tokens,
            top_k=0,
            top_p=1.0,
            **wants,
            **self.extra,
        )
        seconds = time.perf_counter() - start
        return seconds, [tokens_of(row, self.end) for row in out[:, width:].tolist()]
