"""PixelProcessor: frames to what a tower reads, by the numbers in the checkpoint's own preprocessor file.

The library's processors need torchvision or Pillow; this one needs torch: resize (bilinear or bicubic, antialiased,
rounded back to 8 bits as both do), centre crop, rescale, normalise, and for Qwen2-VL the patches. Mean and deviation
come from the file, never from a class default. Float frames (3, H, W) are taken as already scaled: what the file
switches on is applied, 8-bit rules are not.

An event family says in the same file how its frames are drawn: {"event_representation": {"name": "activity",
"frames": 2, "size": 64}}; without it frames are EventGPT's ("event_frame/last_wins", five of them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cascade_runtime.errors import ConfigError, InputError

MAX_FRAMES = 4096
MAX_SIDE = 16384
MAX_ELEMENTS = 1 << 31
DEFAULT_REPRESENTATION: tuple[str, dict[str, Any]] = ("event_frame/last_wins", {"frames": 5})
_MODES = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Pixels:
    """One video as its tower reads it.

    values: (F, 3, S, S) float32, or for Qwen2-VL patches (t * h * w, 3 * 2 * 14 * 14) with grid (t, h, w), h and w in
    patches.
    Example: five 384-pixel frames for OneVision: Pixels(values of shape (5, 3, 384, 384), frames=5, grid=None).
    """

    values: torch.Tensor
    frames: int
    grid: tuple[int, int, int] | None = None


class PixelProcessor:
    """Frames to Pixels for one checkpoint. Raises ConfigError for a preprocessor file it cannot follow."""

    def __init__(self, fields: Mapping[str, Any], *, family: str) -> None:
        self.family = family
        self.event_representation = _representation(fields.get("event_representation"))
        self._do_resize = _switch(fields, "do_resize", True)
        self._do_crop = _switch(fields, "do_center_crop", False)
        self._do_normalize = _switch(fields, "do_normalize", True)
        do_rescale = _switch(fields, "do_rescale", True)
        self._scale = _number(fields, "rescale_factor", 1 / 255) if do_rescale else 1.0
        self._mode = ""
        if self._do_resize:
            resample = fields.get("resample", 3)
            if resample not in _MODES:
                raise ConfigError("resample", resample, "2 (bilinear) or 3 (bicubic)")
            self._mode = _MODES[resample]
        if self._do_normalize:
            self._mean = _triple(fields, "image_mean")
            self._std = _triple(fields, "image_std", positive=True)
        self._size = self._crop = (0, 0)
        if family == "qwen2_vl":
            self._patch = _side(fields, "patch_size", 14)
            self._temporal = _side(fields, "temporal_patch_size", 2)
            self._merge = _side(fields, "merge_size", 2)
            self._pixel_range = _pixel_range(fields) if self._do_resize else (0, 0)
            return
        self._size = _size(fields, "size") if self._do_resize else (0, 0)
        self._crop = _size(fields, "crop_size") if self._do_crop else (0, 0)
        if self._do_crop and not self._crop[1]:
            raise ConfigError("crop_size", fields.get("crop_size"), "an object with height and width")

    def __call__(self, frames: np.ndarray | torch.Tensor) -> Pixels:
        """uint8 (F, H, W, 3) or float (F, 3, H, W) of one video to Pixels. Raises InputError for anything else."""
        values, eight_bit = _channels_first(frames)
        count = values.shape[0]
        height, width = self._target(values.shape[2], values.shape[3])
        if count * height * width * 3 > MAX_ELEMENTS:
            raise InputError("frames", (count, height, width), f"at most {MAX_ELEMENTS} values after resizing")
        if self._do_resize and (height, width) != tuple(values.shape[2:]):
            values = F.interpolate(values, size=(height, width), mode=self._mode, align_corners=False, antialias=True)
            values = values.round().clamp(0, 255) if eight_bit else values
        if self._do_crop:
            values = _center_crop(values, *self._crop)
        if eight_bit:
            values = values * self._scale
        if self._do_normalize:
            values = (values - self._mean) / self._std
        if self.family == "qwen2_vl":
            return self._patches(values, count)
        return Pixels(values.contiguous(), count)

    def window(self, height: int, width: int) -> tuple[float, float, float, float]:
        """What the tower sees of frames of this size: top, left, bottom and right as shares of their sides."""
        if not self._do_crop:
            return 0.0, 0.0, 1.0, 1.0
        tall, wide = self._target(height, width)
        top, left = (tall - self._crop[0]) // 2, (wide - self._crop[1]) // 2
        return top / tall, left / wide, (top + self._crop[0]) / tall, (left + self._crop[1]) / wide

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if not self._do_resize:
            return height, width
        if self.family == "qwen2_vl":
            return smart_size(height, width, self._patch * self._merge, *self._pixel_range)
        tall, wide = self._size
        if wide:
            return tall, wide
        if height <= width:
            return tall, int(tall * width / height)
        return int(tall * height / width), tall

    def _patches(self, values: torch.Tensor, frames: int) -> Pixels:
        """Lay 2x2 neighbouring patches of two frames side by side, as the tower and its merger expect them."""
        step, patch, merge = self._temporal, self._patch, self._merge
        values = torch.cat([values, values[-1:].expand(-frames % step, -1, -1, -1)])
        height, width = values.shape[2:]
        if height % (patch * merge) or width % (patch * merge):
            raise InputError("frames", (height, width), f"multiples of {patch * merge} where do_resize is off")
        t, h, w = values.shape[0] // step, height // patch, width // patch
        blocks = values.view(t, step, 3, h // merge, merge, patch, w // merge, merge, patch)
        flat = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, 3 * step * patch * patch)
        return Pixels(flat.contiguous(), frames, (t, h, w))


def smart_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Qwen2-VL's frame size: multiples of `factor`, within the pixel range, aspect kept (arXiv 2409.12191, 2.1)."""
    if max(height, width) > 200 * min(height, width):
        raise InputError("frames", (height, width), "an aspect ratio of at most 200")
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if tall * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        tall, wide = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return tall, wide


def _channels_first(frames: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Frames as float32 (F, 3, H, W) and whether they were 8-bit."""
    allowed = "uint8 (frames, height, width, 3) or float (frames, 3, height, width)"
    if isinstance(frames, np.ndarray):
        if frames.dtype not in (np.uint8, np.float16, np.float32, np.float64):
            raise InputError("frames", frames.dtype, allowed)
        frames = torch.from_numpy(frames if frames.flags.writeable and frames.flags.c_contiguous else frames.copy())
    eight_bit = frames.dtype == torch.uint8
    shape = tuple(frames.shape)
    if not (eight_bit or frames.is_floating_point()) or len(shape) != 4 or shape[3 if eight_bit else 1] != 3:
        raise InputError("frames", (str(frames.dtype), shape), allowed)
    if not 1 <= shape[0] <= MAX_FRAMES or not all(1 <= side <= MAX_SIDE for side in shape[1:]):
        raise InputError("frames", shape, f"1..{MAX_FRAMES} frames with sides of 1..{MAX_SIDE}")
    values = (frames.permute(0, 3, 1, 2) if eight_bit else frames).to(torch.float32)
    if not eight_bit and not bool(torch.isfinite(values).all()):
        raise InputError("frames", "not finite", "finite numbers")
    return values, eight_bit


def _center_crop(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    tall, wide = values.shape[2:]
    if tall < height or wide < width:
        raise InputError("frames", (tall, wide), f"at least the crop, {height} x {width}")
    top, left = (tall - height) // 2, (wide - width) // 2
    return values[:, :, top : top + height, left : left + width]


def _representation(given: Any) -> tuple[str, dict[str, Any]]:
    if given is None:
        return DEFAULT_REPRESENTATION[0], dict(DEFAULT_REPRESENTATION[1])
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ConfigError("event_representation", given, 'an object with a "name" and the rule\'s parameters')
    return given["name"], {key: value for key, value in given.items() if key != "name"}


def _switch(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    value = fields.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ConfigError(name, value, "true or false")
    return value


def _number(fields: Mapping[str, Any], name: str, default: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(name, value, "a finite number")
    return float(value)


def _side(fields: Mapping[str, Any], name: str, default: int) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
        raise ConfigError(name, value, f"an integer in 1..{MAX_SIDE}")
    return value


def _triple(fields: Mapping[str, Any], name: str, *, positive: bool = False) -> torch.Tensor:
    given = fields.get(name)
    if not isinstance(given, list) or len(given) != 3:
        raise ConfigError(name, given, "a list of three numbers")
    numbers = [_number({name: value}, name, 0.0) for value in given]
    if positive and min(numbers) <= 0:
        raise ConfigError(name, given, "three numbers above zero")
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None]


def _size(fields: Mapping[str, Any], name: str) -> tuple[int, int]:
    """(height, width), or (shortest edge, 0)."""
    given = fields.get(name)
    if isinstance(given, int):
        given = {"height": given, "width": given}
    if isinstance(given, dict) and "shortest_edge" in given and "longest_edge" not in given:
        return _side(given, "shortest_edge", 0), 0
    if not isinstance(given, dict) or "height" not in given or "width" not in given:
        raise ConfigError(name, given, "an object with height and width, or shortest_edge")
    return _side(given, "height", 0), _side(given, "width", 0)


def _pixel_range(fields: Mapping[str, Any]) -> tuple[int, int]:
    size = fields.get("size") if isinstance(fields.get("size"), dict) else {}
    low = fields.get("min_pixels") or size.get("shortest_edge", 56 * 56)  # type: ignore[union-attr]
    high = fields.get("max_pixels") or size.get("longest_edge", 28 * 28 * 1280)  # type: ignore[union-attr]
    if not (isinstance(low, int) and isinstance(high, int) and 1 <= low <= high <= MAX_ELEMENTS):
        raise ConfigError("min_pixels, max_pixels", (low, high), "integers, min <= max")
    return low, high
