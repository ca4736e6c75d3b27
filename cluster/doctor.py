"""What this machine can run: its cores, memory and GPUs, what is installed, and which setups fit where.

A setup fits when every stage's weights and KV slots find room on one device each (a stage is pinned to one device, none
is split), largest first, GPUs before the CPU. Activations, and what other programs take later, are not counted: a tenth
of each device is left free for them. Everything is measured, or read from the headers of files: nothing is downloaded
and no weight is loaded.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from safetensors import safe_open

import cascade_runtime
from cascade_runtime.config import Recipe, load_recipe, recipe_names

PACKAGES = ("torch", "transformers", "ray", "numpy", "pyarrow", "safetensors", "tokenizers")
EXTRAS = {
    "events": ("eventcv",),
    "dsec": ("h5py", "hdf5plugin"),
    "video": ("av",),
    "dev": ("pytest", "hypothesis", "ruff"),
}
FAMILY = Path(cascade_runtime.__file__).parent / "family"  # not asked of models.family: that needs a torch that works
MEMBERS = ("light", "mid", "heavy", "event_encoder", "adapter")
REAL_CASCADES = (("0.5b",), ("7b",), ("72b",), ("0.5b", "7b", "72b"))
REAL_SLOTS, REAL_MAX_LEN = 4, 8192  # four requests of a 32-frame clip each: 6,273 positions and room to answer
_USABLE = 0.9


@dataclass(frozen=True)
class Device:
    """Memory that stages can be pinned to: "cpu", or "cuda:0" with the name of its GPU."""

    name: str
    kind: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Need:
    """What one stage asks of its device; a CPU computes in float32, so it takes more there."""

    stage: str
    gpu_bytes: int
    cpu_bytes: int


@dataclass(frozen=True)
class Setup:
    """One recipe or real family of sizes, its needs, and where each stage would go (None: it does not fit)."""

    name: str
    needs: tuple[Need, ...]
    placement: Mapping[str, str] | None
    problem: str = ""


@dataclass(frozen=True)
class Report:
    """Everything the doctor saw. `healthy`: the default recipe runs here."""

    python: str
    versions: Mapping[str, str | None]
    extras: Mapping[str, bool]
    cores: int
    memory: Device
    shm_free_bytes: int
    gpus: tuple[Device, ...]
    family_bytes: Mapping[str, int | None]
    setups: tuple[Setup, ...]

    @property
    def healthy(self) -> bool:
        default = next(setup for setup in self.setups if setup.name == "three_level")
        return default.placement is not None and all(self.versions[name] for name in ("torch", "transformers"))

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON; bytes as integers."""
        return {**asdict(self), "healthy": self.healthy}

    def text(self) -> str:
        """For people."""
        installed = [f"{name} {version or 'MISSING'}" for name, version in self.versions.items()]
        extras = [f"{name} {'yes' if present else 'no'}" for name, present in self.extras.items()]
        family = [f"{name} {_size(size) if size else 'MISSING'}" for name, size in self.family_bytes.items()]
        rows = [
            ("python", self.python),
            ("packages", ", ".join(installed)),
            ("extras", ", ".join(extras)),
            ("cpu", f"{self.cores} cores, {_size(self.memory.free_bytes)} of {_size(self.memory.total_bytes)} free"),
            ("shared memory", f"{_size(self.shm_free_bytes)} free in /dev/shm (Ray's object store lives there)"),
        ]
        rows += [
            (gpu.name, f"{gpu.kind}, {_size(gpu.free_bytes)} of {_size(gpu.total_bytes)} free") for gpu in self.gpus
        ]
        rows += [] if self.gpus else [("gpu", "none that torch can use")]
        rows += [("family", ", ".join(family)), ("", "")]
        rows += [(setup.name, _verdict(setup)) for setup in self.setups]
        rows += [
            ("", ""),
            ("verdict", "the default recipe runs here" if self.healthy else "the default recipe cannot run here"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def examine() -> Report:
    """Look at this machine. Takes seconds, most of them torch's import."""
    memory, gpus = _memory(), _gpus()
    devices = (*gpus, memory)
    setups = [_recipe_setup(load_recipe(name), devices) for name in recipe_names()]
    return Report(
        python=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        versions={name: _version(name) for name in PACKAGES},
        extras={name: all(find_spec(module) for module in modules) for name, modules in EXTRAS.items()},
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=memory,
        shm_free_bytes=shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0,
        gpus=gpus,
        family_bytes=family_bytes(),
        setups=(*setups, *_real_setups(devices)),
    )


def place(needs: Sequence[Need], devices: Sequence[Device]) -> dict[str, str] | None:
    """A device for each stage, the largest stage first, or None when one of them fits nowhere.

    Every device keeps a tenth of its memory for activations. GPUs are tried before the CPU, roomiest first.
    """
    room = {device.name: int(device.free_bytes * _USABLE) for device in devices}
    placement: dict[str, str] = {}
    for need in sorted(needs, key=lambda need: -need.gpu_bytes):
        for name in sorted(room, key=lambda name: (name == "cpu", -room[name])):
            asked = need.cpu_bytes if name == "cpu" else need.gpu_bytes
            if asked <= room[name]:
                room[name] -= asked
                placement[need.stage] = name
                break
        else:
            return None
    return placement


def family_bytes() -> dict[str, int | None]:
    """Bytes of weights of each bundled member on disk, None where they are missing."""
    sizes: dict[str, int | None] = {}
    for member in MEMBERS:
        files = (FAMILY / member).glob("*.safetensors")
        sizes[member] = sum(file.stat().st_size for file in files) or None
    return sizes


def parameters(directory: Path) -> int:
    """How many numbers the safetensors files of a checkpoint hold, by their headers alone."""
    count = 0
    for path in sorted(directory.glob("model*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def _recipe_setup(recipe: Recipe, devices: Sequence[Device]) -> Setup:
    needs = []
    for stage in (*recipe.stages, recipe.encoder, recipe.adapter):
        if stage is None:
            continue
        directory = FAMILY / stage.family_member if stage.family_member else stage.path
        assert directory is not None
        if not any(directory.glob("*.safetensors")):
            return Setup(recipe.name, (), None, f"no weights of {stage.name} in {directory}")
        numbers = parameters(directory) + _kv_numbers(directory, recipe.cascade.slots, recipe.cascade.max_len)
        needs.append(Need(stage.name, 2 * numbers, 4 * numbers))
    return _setup(recipe.name, needs, devices)


def _kv_numbers(directory: Path, slots: int, max_len: int) -> int:
    """Numbers in the KV slots of a checkpoint; 0 for one without a language model."""
    text = json.loads((directory / "config.json").read_text()).get("text_config")
    if not text:
        return 0
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * head_dim * slots * max_len


def _real_setups(devices: Sequence[Device]) -> list[Setup]:
    """The published LLaVA-OneVision sizes, alone and as a cascade."""
    names = [f"onevision {' > '.join(sizes)}" for sizes in REAL_CASCADES]
    try:
        from cascade_runtime.models import stage_sizes
    except ImportError as error:
        return [Setup(name, (), None, str(error)) for name in names]
    needs: dict[str, Need] = {}
    for size in sorted({size for sizes in REAL_CASCADES for size in sizes}):
        sizes = stage_sizes(size)
        count = sum(sizes.part_bytes.values()) + sizes.kv_bytes_per_token * REAL_SLOTS * REAL_MAX_LEN
        needs[size] = Need(size, count, 2 * count)
    return [
        _setup(name, [needs[size] for size in sizes], devices) for name, sizes in zip(names, REAL_CASCADES, strict=True)
    ]


def _setup(name: str, needs: Sequence[Need], devices: Sequence[Device]) -> Setup:
    placement = place(needs, devices)
    problem = "" if placement else "some stage finds no device with room for it"
    return Setup(name, tuple(needs), placement, problem)


def _memory() -> Device:
    """The machine's memory, or what its control group leaves of it."""
    total, free = 0, 0
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        total, free = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    else:
        total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
        free = min(free, max(int(text) - int(used.read_text()), 0))
    return Device("cpu", platform.machine(), total, free)


def _gpus() -> tuple[Device, ...]:
    try:
        import torch
    except ImportError:
        return ()
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        gpus.append(Device(f"cuda:{index}", torch.cuda.get_device_name(index), total, free))
    return tuple(gpus)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _verdict(setup: Setup) -> str:
    if setup.placement is not None:
        where = ", ".join(f"{stage} on {device}" for stage, device in setup.placement.items())
        return f"fits: {where} ({_weight(setup)})"
    return f"cannot run: {setup.problem}" + (f" ({_weight(setup)})" if setup.needs else "")


def _weight(setup: Setup) -> str:
    gpu, cpu = (_size(sum(sizes)) for sizes in zip(*((n.gpu_bytes, n.cpu_bytes) for n in setup.needs), strict=True))
    return f"{gpu} on GPUs, {cpu} on CPUs"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
