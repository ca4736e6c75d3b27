"""`StageConfig`: one model and the place it is pinned to."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cascade_runtime.config.checks import NAME, choice, integer, number
from cascade_runtime.config.emulation import Profile, profile_kind
from cascade_runtime.config.sees import Sees
from cascade_runtime.errors import ConfigError

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,2})?|emulated(:[a-z][a-z0-9_]{0,31})?")
MAX_REPLICAS = 16  # every one is linked to every one of the neighbouring stages
_SEVERAL = re.compile(r"(cpu|cuda:\d{1,2})(\+(cpu|cuda:\d{1,2})){1,7}")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One model and the place it is pinned to.

    checkpoint: "family:<member>" for the bundled family, else a directory in the Hugging Face format ("~" is expanded,
    a relative path counts from the current directory). threads: CPU threads of the stage, 0 leaves the default.
    compile: compile passes of one row on a CPU; takes a C++ compiler, and most of a minute at the first start.
    drafter: "lookup" makes the lightest stage propose what followed the same words in earlier answers; of its
    checkpoint it takes the tokenizer, and no weights. "edge" has the lightest model run on the boxes of `cascade edge`;
    what they draft is passed on here.
    heads: "family:<kind>" or a folder of drafting heads (`cascade train heads`) that live beside a target which is the
    only level, read its states, and draft for it.
    sees: how much of the recording a drafting stage is given, see `Sees`. max_len: positions in each of its KV slots,
    where they are fewer than the cascade's (0): what a stage does not see takes no memory.
    num_gpus, num_cpus, labels: what is asked of Ray; ignored in process. Ray keeps books of fractions of a GPU, it
    does not divide its memory. labels: of the node, as Ray's label selectors write them ("edge", "in(a, b)", "!x").
    beside: the stage whose node and device this one shares, with the labels and an equal part of the `num_gpus` of that
    one; it asks for none of its own. Of replicas the first lives beside the first, and so on.

    replicas: actors that share the stage's requests, each with a part of the cascade's slots and a place of its own; a
    request that one of them can no longer serve goes on at another. On Ray only: one process has every stage once.

    device "cuda:0+cuda:1" splits a language model by layers over several devices, which then work one after the other:
    for a model that is larger than each of them. The first also holds embeddings and head.

    device "emulated" or "emulated:<name>" computes nothing: it takes as long as `profile` says, and has no checkpoint.
    Stages that name the same emulated device take turns on it.
    """

    name: str
    checkpoint: str = ""
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 1
    num_gpus: float = 0.0
    num_cpus: float = 1.0
    labels: Mapping[str, str] = field(default_factory=dict)
    beside: str = ""
    profile: Profile | None = None
    compile: bool = False
    drafter: str = "model"
    heads: str = ""
    sees: str = "all"
    max_len: int = 0
    replicas: int = 1

    def __post_init__(self) -> None:
        where = self.where
        if not isinstance(self.device, str) or not (_DEVICE.fullmatch(self.device) or _SEVERAL.fullmatch(self.device)):
            allowed = "auto, cpu, cuda, cuda:<index>, emulated, emulated:<name>, or several as in cuda:0+cuda:1"
            raise ConfigError(f"{where}.device", self.device, allowed)
        whole = self.name in ("encoder", "adapter") or self.compile or self.heads or self.sees != "all"
        if "+" in self.device and whole:
            raise ConfigError(f"{where}.device", self.device, "one device, unless for a plain language model")
        self._check_source(where)
        if self.checkpoint.startswith("family:") and not NAME.fullmatch(self.checkpoint.removeprefix("family:")):
            raise ConfigError(f"{where}.checkpoint", self.checkpoint, "family:<member>, for example family:light")
        choice(f"{where}.dtype", self.dtype, ("auto", "float32", "bfloat16", "float16", "float64"))
        choice(f"{where}.drafter", self.drafter, ("model", "lookup", "edge"))
        if not isinstance(self.compile, bool) or (self.compile and (self.emulated or self.drafter == "lookup")):
            raise ConfigError(f"{where}.compile", self.compile, "true or false, true only where a model runs")
        if not isinstance(self.heads, str) or len(self.heads) > 1024 or (self.heads and self.emulated):
            raise ConfigError(f"{where}.heads", self.heads, "family:<kind> or a folder, where a model runs")
        looks = not self.emulated and self.drafter != "lookup"
        if Sees.parse(self.sees, f"{where}.sees").method != "all" and not looks:
            raise ConfigError(f"{where}.sees", self.sees, "all, where no model looks")
        if self.max_len or isinstance(self.max_len, bool):
            integer(ConfigError, f"{where}.max_len", self.max_len, 16 if looks else 0, 1_048_576 if looks else 0)
        integer(ConfigError, f"{where}.threads", self.threads, 0, 256)
        integer(ConfigError, f"{where}.replicas", self.replicas, 1, MAX_REPLICAS)
        number(ConfigError, f"{where}.num_gpus", self.num_gpus, 0, 16)
        number(ConfigError, f"{where}.num_cpus", self.num_cpus, 0, 256)
        if not isinstance(self.beside, str) or (self.beside and not NAME.fullmatch(self.beside)):
            raise ConfigError(f"{where}.beside", self.beside, "the name of another stage")
        if self.beside and (self.num_gpus or self.labels):
            asked = {"num_gpus": self.num_gpus, "labels": dict(self.labels or {})}
            raise ConfigError(f"{where}.beside", asked, f"neither num_gpus nor labels: those of {self.beside} count")
        if not isinstance(self.labels, Mapping) or len(self.labels) > 16:
            raise ConfigError(f"{where}.labels", self.labels, "a table of at most 16 strings")
        for key, value in self.labels.items():
            if not isinstance(key, str) or not isinstance(value, str) or not 1 <= len(value) <= 4096:
                raise ConfigError(f"{where}.labels.{key}", value, "a string of 1 to 4096 characters")
        object.__setattr__(self, "labels", dict(self.labels))

    def _check_source(self, where: str) -> None:
        """A checkpoint, or an emulated device and its profile."""
        if not isinstance(self.checkpoint, str) or len(self.checkpoint) > 1024 or "\0" in self.checkpoint:
            raise ConfigError(f"{where}.checkpoint", self.checkpoint, "family:<member> or a directory")
        if self.emulated == bool(self.checkpoint):
            allowed = "none: the device is emulated" if self.emulated else "family:<member> or a directory"
            raise ConfigError(f"{where}.checkpoint", self.checkpoint, allowed)
        kind = profile_kind(self.name)
        if not self.emulated and self.profile is not None:
            raise ConfigError(f"{where}.profile", self.profile, 'none, unless device = "emulated"')
        if self.emulated and not isinstance(self.profile, kind):
            raise ConfigError(f"{where}.profile", self.profile, f"a table with {', '.join(kind.__dataclass_fields__)}")

    @property
    def where(self) -> str:
        """Its table in a recipe, as errors and overrides name it."""
        return self.name if self.name in ("encoder", "adapter") else f"stages.{self.name}"

    @property
    def members(self) -> tuple[str, ...]:
        """The names of its replicas: the first has the stage's own, the others "light.2" and so on."""
        return members_of(self.name, self.replicas)

    @property
    def emulated(self) -> bool:
        """Whether this stage takes time and computes nothing."""
        return self.device.partition(":")[0] == "emulated"

    @property
    def family_member(self) -> str | None:
        """The bundled member this stage loads ("light"), or None for a directory of its own."""
        return self.checkpoint.removeprefix("family:") if self.checkpoint.startswith("family:") else None

    @property
    def path(self) -> Path | None:
        """The checkpoint's directory with "~" expanded, or None for a bundled member."""
        return None if self.family_member else Path(self.checkpoint).expanduser()


def members_of(stage: str, replicas: int) -> tuple[str, ...]:
    """The names of a stage's replicas: the first has the stage's own, the others "light.2" and so on."""
    return (stage, *(f"{stage}.{number}" for number in range(2, replicas + 1)))


def stage_of(member: str) -> str:
    """The stage that a replica belongs to."""
    return member.partition(".")[0]


def links_between(lighter: Sequence[str], heavier: Sequence[str]) -> dict[tuple[str, str], int]:
    """Each replica of a stage with each of the next, and the epoch that their link begins with. As many epochs lie
    between two of one link, so that no two links between these stages ever have the same.
    """
    return {pair: epoch for epoch, pair in enumerate(itertools.product(lighter, heavier))}
