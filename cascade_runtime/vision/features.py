"""`VisualFeatures`: a feature array that says what it is, so that a stage can refuse what it was not made for.

Two models of the same shape do not understand each other's features, and features adapted twice look like features.
So a packet carries its space (a tag derived from the weights that made it), every transform applied to it, and the
hash of the recording it came from. It is what travels between stages: plain numpy, bfloat16 as its uint16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from cascade_runtime.errors import FeatureSpaceError

MAX_FEATURE_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class VisualFeatures:
    """Features (frames, patches, dim) of one recording.

    space: tag of the space they live in. transforms: what was done to them, in order. source: hash of the recording.
    grid: (t, h, w) of patches for towers of any picture size (Qwen2-VL), else None. `bfloat16`: `data` holds uint16
    bits. occupancy: share of the recording's 14-pixel patches in which anything happened, where it is known. density:
    where it is known, (rendered frames, cells, cells) float32, events per cell of what the tower sees of each frame.
    """

    data: np.ndarray
    space: str
    transforms: tuple[str, ...]
    source: str
    grid: tuple[int, int, int] | None = None
    bfloat16: bool = False
    occupancy: float | None = None
    density: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or 0 in self.data.shape:
            raise FeatureSpaceError("features.shape", self.data.shape, "(frames, patches, dim), none of them 0")
        if self.data.dtype not in ((np.uint16,) if self.bfloat16 else (np.float32, np.float16, np.float64)):
            raise FeatureSpaceError("features.dtype", str(self.data.dtype), "float16/32/64, or uint16 bits of bfloat16")
        if self.data.nbytes > MAX_FEATURE_BYTES:
            raise FeatureSpaceError("features.nbytes", self.data.nbytes, f"at most {MAX_FEATURE_BYTES}")
        if self.density is not None and (self.density.ndim != 3 or self.density.dtype != np.float32):
            raise FeatureSpaceError("features.density", self.density.shape, "(frames, cells, cells) float32")

    def __reduce__(self) -> tuple[object, ...]:  # whoever gets one looks again
        return (type(self), tuple(getattr(self, field.name) for field in fields(self)))

    @classmethod
    def from_tensor(
        cls,
        data: torch.Tensor,
        *,
        space: str,
        transforms: tuple[str, ...],
        source: str,
        grid: tuple[int, int, int] | None = None,
    ) -> VisualFeatures:
        """Pack a tensor (frames, patches, dim)."""
        data = data.detach().cpu().contiguous()
        if data.dtype == torch.bfloat16:
            return cls(data.view(torch.uint16).numpy(), space, transforms, source, grid, bfloat16=True)
        return cls(data.numpy(), space, transforms, source, grid)

    @property
    def frames(self) -> int:
        return self.data.shape[0]

    def tensor(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> torch.Tensor:
        """A copy as a tensor (packets from the object store are read-only). Raises on numbers that are not finite."""
        tensor = torch.from_numpy(self.data.copy())
        if self.bfloat16:
            tensor = tensor.view(torch.bfloat16)
        if not bool(tensor.isfinite().all()):
            raise FeatureSpaceError("features.data", "NaN or infinity", "finite numbers")
        return tensor.to(device=device, dtype=dtype or tensor.dtype)

    def expect(self, space: str, dim: int) -> VisualFeatures:
        """This packet, if it lives in `space` with `dim` numbers per patch; else `FeatureSpaceError`."""
        if self.space != space:
            raise FeatureSpaceError("features.space", self.space, space)
        if self.data.shape[2] != dim:
            raise FeatureSpaceError("features.dim", self.data.shape[2], str(dim))
        return self

    def choose_frames(self, keep: tuple[bool, ...], other: VisualFeatures) -> VisualFeatures:
        """Frame by frame: mine where `keep`, else the other packet's. Both must be of one space, shape and
        recording.
        """
        if self.data.shape != other.data.shape or self.source != other.source or len(keep) != self.frames:
            raise FeatureSpaceError("features", (self.data.shape, self.source), str((other.data.shape, other.source)))
        other.expect(self.space, self.data.shape[2])
        if all(keep):
            return self
        data = np.where(np.asarray(keep)[:, None, None], self.data, other.data)
        return replace(other if not any(keep) else self, data=data.astype(self.data.dtype, copy=False))
