"""A recipe's stages, real or emulated: the one place that tells them apart.

Who loads a stage asks here. `wait` off gives emulated stages that take no time, for the engine.
"""

from __future__ import annotations

from cascade_runtime.config import AdapterProfile, EncoderProfile, Recipe, StageConfig
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.lookup import LookupLevel
from cascade_runtime.decoding.stopping import Tokenizer
from cascade_runtime.emulation.device import EmulatedDevice, InstantDevice
from cascade_runtime.emulation.level import EmulatedLevel, EmulatedTokenizer
from cascade_runtime.emulation.tokens import tokens_of
from cascade_runtime.emulation.vision import EmulatedBranch, EmulatedVerifier
from cascade_runtime.errors import ConfigError
from cascade_runtime.models.stage_source import load_front
from cascade_runtime.vision.adapter_verifier import AdapterVerifier
from cascade_runtime.vision.event_branch import EventBranch


def load_level(recipe: Recipe, index: int, *, wait: bool = True) -> Level:
    """Language level `index`, 0 the lightest. Raises `ConfigError` naming what is wrong with its source."""
    stage = recipe.stages[index]
    if stage.drafter == "lookup":
        return LookupLevel.load(stage, recipe.cascade)
    if stage.drafter == "edge":
        allowed = "model or lookup, but for `cascade edge-server` and pipelines: this drafter runs on edge boxes"
        raise ConfigError(f"stages.{stage.name}.drafter", "edge", allowed)
    if not stage.emulated:
        return Level.load(stage, recipe.cascade)
    tokens, ends, tag = tokens_of(recipe)
    device = _device(stage, wait)
    return EmulatedLevel(stage, recipe.cascade, stage=index, tokens=tokens, ends=ends, tag=tag, device=device)


def load_branch(recipe: Recipe, *, wait: bool = True) -> EventBranch:
    """The event branch; without an [encoder] it only renders."""
    if recipe.emulation is None:
        return EventBranch.load(recipe)
    stage = recipe.encoder
    if stage is None:
        return EmulatedBranch(EncoderProfile(), InstantDevice(), encodes=False)
    assert isinstance(stage.profile, EncoderProfile)  # the recipe checked that
    return EmulatedBranch(stage.profile, _device(stage, wait), encodes=True)


def load_verifier(recipe: Recipe, *, wait: bool = True) -> AdapterVerifier:
    """The adapter/verifier; without an [adapter] it has dense features only."""
    if recipe.emulation is None:
        return AdapterVerifier.load(recipe)
    stage, levels = recipe.adapter, len(recipe.stages)
    if stage is None:
        return EmulatedVerifier(AdapterProfile(), InstantDevice(), recipe.gate, levels=levels, adapts=False)
    assert isinstance(stage.profile, AdapterProfile)  # the recipe checked that
    return EmulatedVerifier(stage.profile, _device(stage, wait), recipe.gate, levels=levels, adapts=True)


def load_tokenizer(recipe: Recipe) -> Tokenizer:
    """What turns the target's token ids into text."""
    if recipe.emulation is None:
        return load_front(recipe.target).tokenizer
    tokens, ends, _ = tokens_of(recipe)
    return EmulatedTokenizer(tokens.vocab_size, ends)


def _device(stage: StageConfig, wait: bool) -> EmulatedDevice:
    return EmulatedDevice(stage.device) if wait else InstantDevice()
