"""`BatchConfig`: what a batch reads, asks and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cascade_runtime.batch.layouts import LAYOUTS, companions
from cascade_runtime.batch.manifest import configuration
from cascade_runtime.batch.output import check_output
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.config.checks import choice, integer, number
from cascade_runtime.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """One batch. root: the folder that recordings lie below, by default the input's. concurrency: questions handed to
    the cascade at once. window_rows: within how many rows questions about one recording find each other. shard_rows,
    commit_s: when answers are committed. resume: go on where an earlier run was stopped, or begin anew.
    """

    input: Path
    output: Path
    layout: str = "rows"
    root: Path | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    speculate: bool = True
    concurrency: int = 32
    window_rows: int = 1024
    shard_rows: int = 64
    commit_s: float = 10.0
    resume: bool = True
    hidden: bool = False
    """Whether to show no progress."""

    def __post_init__(self) -> None:
        check_output(self.output)
        choice("layout", self.layout, tuple(LAYOUTS))
        integer(ConfigError, "concurrency", self.concurrency, 1, 4096)
        integer(ConfigError, "window_rows", self.window_rows, 1, 65536)
        integer(ConfigError, "shard_rows", self.shard_rows, 1, 65536)
        number(ConfigError, "commit_s", self.commit_s, 0.0, 3600.0)
        if self.root is not None and not self.root.is_dir():
            raise ConfigError("root", str(self.root), "an existing folder")

    @property
    def manifest_path(self) -> Path:
        return self.output.with_name(self.output.name + ".manifest.json")

    @property
    def parts(self) -> Path:
        return self.output.with_name(self.output.name + ".parts")

    def describe(self, recipe: Recipe, checkpoints: Mapping[str, str]) -> dict[str, Any]:
        """What the answers depend on, see `configuration`."""
        files = [self.input, *companions(self.input, self.layout)]
        asked = {
            "layout": self.layout,
            "root": str((self.root or self.input.parent).resolve()),
            "sampling": asdict(self.sampling),
            "speculate": self.speculate,
            "window_rows": self.window_rows,
        }
        return configuration(files=files, recipe=recipe, asked=asked, checkpoints=checkpoints)
