"""How long emulated devices take (`StepProfile`, `EncoderProfile`, `AdapterProfile`) and what they say.

All times are milliseconds of wall time. See `cascade_runtime/emulation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from cascade_runtime.config.checks import choice, integer, number
from cascade_runtime.errors import ConfigError

_MOST_MS = 1e6


class _Profile:
    """Every field that ends in _ms is a number of milliseconds."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]  # its subclasses are dataclasses
            if item.name.endswith("_ms"):
                number(ConfigError, f"profile.{item.name}", getattr(self, item.name), 0, _MOST_MS)


@dataclass(frozen=True, kw_only=True)
class StepProfile(_Profile):
    """[stages.<level>.profile]: what a pass takes.

    base_ms + per_row_ms * rows + per_token_ms * answer tokens fed + per_position_ms * positions the rows hold,
    several_ms where more than one answer token is fed, and prefill_ms for each prompt fed in it, by the share of
    the prompt that is fed. prompt_positions: what a prompt occupies of a slot.
    """

    base_ms: float
    per_row_ms: float = 0.0
    per_token_ms: float = 0.0
    per_position_ms: float = 0.0
    several_ms: float = 0.0
    prefill_ms: float = 0.0
    prompt_positions: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        integer(ConfigError, "profile.prompt_positions", self.prompt_positions, 1, 1_048_576)


@dataclass(frozen=True, kw_only=True)
class EncoderProfile(_Profile):
    """[encoder.profile]: rendering takes render_ms and render_per_second_ms for each second of the recording, event
    features encode_ms on top.
    """

    render_ms: float = 0.0
    render_per_second_ms: float = 0.0
    encode_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AdapterProfile(_Profile):
    """[adapter.profile]: aligning takes align_ms, the gate gate_ms, dense features dense_ms and dense_per_second_ms for
    each second of the recording.
    """

    align_ms: float = 0.0
    gate_ms: float = 0.0
    dense_ms: float = 0.0
    dense_per_second_ms: float = 0.0


Profile = StepProfile | EncoderProfile | AdapterProfile


def profile_kind(stage: str) -> type[Profile]:
    """The profile that a stage of this name may have."""
    return {"encoder": EncoderProfile, "adapter": AdapterProfile}.get(stage, StepProfile)


@dataclass(frozen=True, kw_only=True)
class EmulationConfig:
    """[emulation]: who says what on emulated devices.

    drafters "agreement": made-up answers; each drafter says what the next stage would say with the chance that
    `agreement` gives its edge. "ngram": `answers` is a file of the target's recorded answers; drafters are n-gram
    models of `orders` tokens (per drafter; 2, 3, ... if empty) fitted on every other answer; questions get the rest.
    "recorded": the file also holds what each drafter says at each position of the target's answer. seed: other words
    from "agreement", another choice of answers from the others.
    """

    drafters: str = "agreement"
    agreement: tuple[float, ...] = ()
    answers: str = ""
    orders: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        choice("emulation.drafters", self.drafters, ("agreement", "ngram", "recorded"))
        made_up = self.drafters == "agreement"
        if not isinstance(self.answers, str) or len(self.answers) > 1024 or "\0" in self.answers:
            raise ConfigError("emulation.answers", self.answers, "the path of a JSON file")
        if made_up == bool(self.answers):
            allowed = 'a file, for drafters = "ngram" and "recorded", and only for those'
            raise ConfigError("emulation.answers", self.answers, allowed)
        object.__setattr__(self, "agreement", _listed("emulation.agreement", self.agreement))
        for value in self.agreement:
            number(ConfigError, "emulation.agreement", value, 0, 1)
        if self.agreement and not made_up:
            raise ConfigError("emulation.agreement", self.agreement, f'none with drafters = "{self.drafters}"')
        object.__setattr__(self, "orders", _listed("emulation.orders", self.orders))
        for value in self.orders:
            integer(ConfigError, "emulation.orders", value, 1, 8)
        if self.orders and self.drafters != "ngram":
            raise ConfigError("emulation.orders", self.orders, f'none with drafters = "{self.drafters}"')
        integer(ConfigError, "emulation.seed", self.seed, 0, 2**62)

    def check_edges(self, edges: int) -> None:
        """Raise `ConfigError` unless this fits a cascade of so many edges."""
        if self.drafters == "agreement" and len(self.agreement) != edges:
            raise ConfigError("emulation.agreement", self.agreement, f"one number per edge ({edges} here)")
        if self.orders and len(self.orders) != edges:
            raise ConfigError("emulation.orders", self.orders, f"one integer per drafter ({edges} here)")


def _listed(name: str, value: object) -> tuple[object, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(name, value, "a list of numbers")
    return tuple(value)
