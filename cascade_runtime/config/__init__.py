"""What a user may choose: how to sample (`SamplingParams`) and what to run where (`Recipe`).

    SamplingParams        one request: temperature, top-k, top-p, seed, length, stops
    Recipe                one setup, usually read from a TOML file by `load_recipe`
      .cascade            levels from light to heavy, mode, drafts per edge, slots      [cascade]
      .stages             one language stage per level: checkpoint and placement        [stages.<level>]
      .encoder, .adapter  the event branch, or None where the setup has none            [encoder] [adapter]
      .gate               when aligned event features may stand in for dense ones       [gate]
      .channels           how neighbouring stages are linked                            [channels]
      .policy             who decides how far to draft and when to verify               [policy]
      .deadlines          how long anything may wait                                    [deadlines]
      .supervision        when a stage hangs, and how often one is started anew         [supervision]
      .tree               the tree that the lightest level drafts, or None for a chain  [tree]
      .emulation          what emulated devices say, or None where models run           [emulation]
      .acceptance         parameters of the rule that `cascade.acceptance` names        [acceptance]

Every field is checked when the object is made: a recipe that exists is a recipe that makes sense by itself. Whether
this machine can run it is another question (`cascade doctor`). Unknown keys raise; numbers are bounded; nothing is
clamped. Knows neither models nor devices nor Ray: the strings are resolved by whoever uses them.
"""

from cascade_runtime.config.emulation import AdapterProfile, EmulationConfig, EncoderProfile, StepProfile
from cascade_runtime.config.recipe import (
    MAX_LEVELS,
    CascadeConfig,
    ChannelConfig,
    DeadlineConfig,
    GateConfig,
    PolicyConfig,
    Recipe,
    load_recipe,
    recipe_from_dict,
    recipe_names,
    setup_names,
)
from cascade_runtime.config.recipe_table import recipe_to_dict
from cascade_runtime.config.sampling import MAX_TOKENS, SamplingOptions, SamplingParams
from cascade_runtime.config.sees import Sees
from cascade_runtime.config.stage import StageConfig, links_between, stage_of
from cascade_runtime.config.supervision import SupervisionConfig
from cascade_runtime.config.tree import TreeConfig

__all__ = [
    "MAX_LEVELS",
    "MAX_TOKENS",
    "AdapterProfile",
    "CascadeConfig",
    "ChannelConfig",
    "DeadlineConfig",
    "EmulationConfig",
    "EncoderProfile",
    "GateConfig",
    "PolicyConfig",
    "Recipe",
    "SamplingOptions",
    "SamplingParams",
    "Sees",
    "StageConfig",
    "StepProfile",
    "SupervisionConfig",
    "TreeConfig",
    "links_between",
    "load_recipe",
    "recipe_from_dict",
    "recipe_names",
    "recipe_to_dict",
    "setup_names",
    "stage_of",
]
