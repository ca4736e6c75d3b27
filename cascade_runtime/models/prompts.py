"""PromptBuilder: a family's chat template for one video and one question, as token ids and positions.

The template's control tokens come from the template only. What the user typed goes through a copy of the tokenizer
that knows no added tokens, so "<|im_end|>" or "<video>" in a question is spelled out in ordinary tokens and can
neither end the turn nor claim visual positions. Positions are explicit: 0..n-1, or for Qwen2-VL three axes (time,
height, width), where the text after the video goes on from the largest side of its grid (M-RoPE, arXiv 2409.12191,
2.1).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from cascade_runtime.errors import ConfigError, InputError
from cascade_runtime.models.visual_layout import VisualLayout

MAX_QUESTION_CHARS = 100_000
MAX_VISUAL_TOKENS = 1 << 18
_PLACE = object()
_ChatPiece = str | object

# A template: control tokens ("<|...|>"), plain text that may hold "{question}", and the video's place.
_ONEVISION: tuple[_ChatPiece, ...] = (
    "<|im_start|>",
    "user ",
    _PLACE,
    "\n{question}",
    "<|im_end|>",
    "<|im_start|>",
    "assistant\n",
)
_VICUNA: tuple[_ChatPiece, ...] = ("USER: ", _PLACE, "\n{question} ASSISTANT:")
_QWEN2_VL: tuple[_ChatPiece, ...] = (
    *(
        "<|im_start|>",
        "system\nYou are a helpful assistant.",
        "<|im_end|>",
        "\n",
        "<|im_start|>",
        "user\n",
        "<|vision_start|>",
    ),
    *(_PLACE, "<|vision_end|>", "{question}", "<|im_end|>", "\n", "<|im_start|>", "assistant\n"),
)
_TEMPLATES = {"llava_onevision": _ONEVISION, "llava_next_video": _VICUNA, "video_llava": _VICUNA, "qwen2_vl": _QWEN2_VL}


@dataclass(frozen=True)
class Prompt:
    """A prompt of n tokens.

    input_ids: (n,) int64, the video token's id at visual positions; visual_mask: (n,) bool; position_ids: (n,) or (3,
    n) int64;
    next_position: the position of the first answer token; num_visual: how many positions are visual.
    """

    input_ids: torch.Tensor
    visual_mask: torch.Tensor
    position_ids: torch.Tensor
    next_position: int
    num_visual: int


class PromptBuilder:
    """Prompts of one checkpoint. `visual_tokens(frames, grid)` says how many visual positions a video takes."""

    def __init__(self, tokenizer: Any, *, family: str, config: Any) -> None:
        self.family = family
        self.video_token_id: int = config.video_token_id
        self._vision = config.vision_config
        self._config = config
        self._template = _TEMPLATES[family]
        added = tokenizer.added_tokens_encoder
        self._control = {piece: added[piece] for piece in self._template if isinstance(piece, str) and piece in added}
        missing = [p for p in self._template if isinstance(p, str) and p.startswith("<|") and p not in added]
        if missing:
            raise ConfigError("tokenizer", missing, f"added tokens that the {family} chat template uses")
        if not 0 <= self.video_token_id < len(tokenizer):
            raise ConfigError("video_token_id", self.video_token_id, f"0..{len(tokenizer) - 1}, the tokenizer's ids")
        self._forbidden = set(added.values()) - {tokenizer.unk_token_id}
        self._plain = _without_added_tokens(tokenizer)
        self._skip = self._prefix_tokens(tokenizer)
        opening = tokenizer.encode("")
        self._opening = opening[:1] if opening[:1] == [tokenizer.bos_token_id] else []

    def visual_tokens(self, frames: int, grid: tuple[int, int, int] | None = None) -> int:
        """Visual positions of a video, as `layout` lays them out."""
        return self.layout(frames, grid).total

    def layout(self, frames: int, grid: tuple[int, int, int] | None = None) -> VisualLayout:
        """The visual positions of a video of `frames` frames (and for Qwen2-VL its patch grid). Raises InputError."""
        if self.family == "qwen2_vl":
            merge = self._vision.spatial_merge_size
            t, h, w = self._grid(grid)
            return VisualLayout((t, h // merge, w // merge))
        if frames < 1:
            raise InputError("frames", frames, "an integer >= 1")
        side = self._vision.image_size // self._vision.patch_size
        if self.family == "llava_onevision":
            return VisualLayout((frames, (side + 1) // 2, (side + 1) // 2), trailing=1)
        if self.family == "llava_next_video":
            pooled = side // self._config.spatial_pool_stride
            return VisualLayout((frames, pooled, pooled))
        return VisualLayout((frames, side, side), leading=1 if self._vision.model_type == "clip_vision_model" else 0)

    def build(
        self, question: str, *, num_visual: int | None, frames: int, grid: tuple[int, int, int] | None = None
    ) -> Prompt:
        """The prompt for one video and `question`.

        num_visual: visual positions to reserve (None: `visual_tokens`; a LLaVA prompt may carry fewer, pruned ones).
        Raises InputError for an empty or oversized question, or a count that contradicts Qwen2-VL's grid.
        """
        if not isinstance(question, str) or not question.strip() or len(question) > MAX_QUESTION_CHARS:
            raise InputError("question", question, f"text of 1..{MAX_QUESTION_CHARS} characters")
        full = self.visual_tokens(frames, grid) if num_visual is None or self.family == "qwen2_vl" else num_visual
        if (num_visual is not None and num_visual != full) or full < 0:
            raise InputError("num_visual", num_visual, f"{full} for the grid {grid}")
        if full > MAX_VISUAL_TOKENS:
            raise InputError("visual tokens", full, f"at most {MAX_VISUAL_TOKENS}")
        ids, start = list(self._opening), 0
        for index, piece in enumerate(self._template):
            if piece is _PLACE:
                start = len(ids)
                ids += [self.video_token_id] * full
            elif piece in self._control:
                ids.append(self._control[piece])  # type: ignore[index]
            else:
                ids += self._spell(str(piece).replace("{question}", question), first=index == 0)
        input_ids = torch.tensor(ids, dtype=torch.long)
        visual_mask = torch.zeros(len(ids), dtype=torch.bool)
        visual_mask[start : start + full] = True
        if self.family == "qwen2_vl":
            position_ids = self._axes(len(ids), start, self._grid(grid))
        else:
            position_ids = torch.arange(len(ids))
        return Prompt(input_ids, visual_mask, position_ids, int(position_ids.max()) + 1, full)

    def _spell(self, text: str, *, first: bool) -> list[int]:
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if not self._forbidden.isdisjoint(ids):
            raise InputError("question", text, "text that this tokenizer can spell without control tokens")
        return ids if first else ids[self._skip :]

    def _prefix_tokens(self, tokenizer: Any) -> int:
        """Tokens that a piece spelled alone has at its front, but not after a control token (Llama's leading space)."""
        video = tokenizer.convert_ids_to_tokens(self.video_token_id)
        after = tokenizer.encode(f"{video}\n", add_special_tokens=False)[1:]
        alone = self._plain.encode("\n", add_special_tokens=False).ids
        return len(alone) - len(after) if alone[-len(after) :] == after else 0

    def _grid(self, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
        merge = self._vision.spatial_merge_size
        if grid is None or len(grid) != 3 or min(grid) < 1 or grid[1] % merge or grid[2] % merge:
            raise InputError("grid", grid, f"(t, h, w) in patches, h and w multiples of {merge}")
        return grid

    def _axes(self, length: int, start: int, grid: tuple[int, int, int]) -> torch.Tensor:
        merge = self._vision.spatial_merge_size
        t, h, w = grid[0], grid[1] // merge, grid[2] // merge
        axes = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
        video = torch.stack([axis.flatten() for axis in axes]) + start
        resume = start + max(h, w)
        tail = torch.arange(length - start - t * h * w) + resume
        return torch.cat([torch.arange(start).expand(3, -1), video, tail.expand(3, -1)], dim=1)


def _without_added_tokens(tokenizer: Any) -> Tokenizer:
    """A copy of a fast tokenizer that spells every text in ordinary tokens."""
    fields = json.loads(tokenizer.backend_tokenizer.to_str())
    fields["added_tokens"] = []
    fields["post_processor"] = None
    fields["padding"] = fields["truncation"] = None
    return Tokenizer.from_str(json.dumps(fields))
