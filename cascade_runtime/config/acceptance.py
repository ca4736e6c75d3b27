"""How drafts are accepted: the rules by name, and the parameters of each, a recipe's [acceptance] table.

    shared_noise                                    exact, everywhere: the default, nothing to set
    ratio               RatioConfig                 exact in law; in one process
    traversal           TraversalConfig             the same over a sampled tree, between two levels
    lossy_fuzzy         FuzzyConfig                 lossy: what the target would not have said may stand
    lossy_cascade_*     DeferralConfig              lossy
    lossy_typical       TypicalConfig               lossy

The rules themselves are in `decoding/acceptance/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cascade_runtime.config.checks import number
from cascade_runtime.errors import ConfigError

SHARED_NOISE, TRAVERSAL = "shared_noise", "traversal"


@dataclass(frozen=True, kw_only=True)
class SharedNoiseConfig:
    """Nothing to set."""


@dataclass(frozen=True, kw_only=True)
class RatioConfig:
    """The target's law; which tokens a seed gives depends on the drafters too, unlike under shared noise.

    leniency: inner levels keep a draft with min(1, leniency p / q); the last keeps to min(1, p / q), so that its law
    stays exact.
    """

    leniency: float = 1.0

    def __post_init__(self) -> None:
        number(ConfigError, "acceptance.leniency", self.leniency, 1, 1000)


@dataclass(frozen=True, kw_only=True)
class TraversalConfig:
    """Nothing to set: the tree is the recipe's, [tree] kind = "sampled"."""


@dataclass(frozen=True, kw_only=True)
class FuzzyConfig:
    """tau: a draft is kept where KL(verifier || drafter) is at most this, in nats; one number, or one per edge."""

    tau: float | tuple[float, ...] = 0.3

    def __post_init__(self) -> None:
        taus = self.tau if isinstance(self.tau, Sequence) and not isinstance(self.tau, str) else (self.tau,)
        for tau in taus:
            number(ConfigError, "acceptance.tau", tau, 0, 100)
        if taus is self.tau:
            object.__setattr__(self, "tau", tuple(taus))

    def per_edge(self, edges: int) -> tuple[float, ...]:
        """One threshold per edge. Raises `ConfigError` where they are not as many."""
        taus = self.tau if isinstance(self.tau, tuple) else (self.tau,) * edges
        if len(taus) != edges:
            raise ConfigError("acceptance.tau", self.tau, f"one number, or one per edge ({edges} here)")
        return taus


@dataclass(frozen=True, kw_only=True)
class DeferralConfig:
    """alpha: how readily the drafter is believed: 0 always defers but where the drafter is as sure as can be asked, 1
    never defers ("chow", "diff") or only where the verifier is surer by more than the two differ ("opt").
    """

    alpha: float = 0.3

    def __post_init__(self) -> None:
        number(ConfigError, "acceptance.alpha", self.alpha, 0, 1)


@dataclass(frozen=True, kw_only=True)
class TypicalConfig:
    """A draft is kept where the verifier gives it more than min(epsilon, alpha exp(-entropy)); Medusa's defaults."""

    epsilon: float = 0.09
    alpha: float = 0.3

    def __post_init__(self) -> None:
        number(ConfigError, "acceptance.epsilon", self.epsilon, 0, 1)
        number(ConfigError, "acceptance.alpha", self.alpha, 0, 1)


AcceptanceConfig = SharedNoiseConfig | RatioConfig | TraversalConfig | FuzzyConfig | DeferralConfig | TypicalConfig

RULES: dict[str, type[AcceptanceConfig]] = {
    SHARED_NOISE: SharedNoiseConfig,
    "ratio": RatioConfig,
    TRAVERSAL: TraversalConfig,
    "lossy_fuzzy": FuzzyConfig,
    "lossy_cascade_chow": DeferralConfig,
    "lossy_cascade_diff": DeferralConfig,
    "lossy_cascade_opt": DeferralConfig,
    "lossy_cascade_token": DeferralConfig,
    "lossy_typical": TypicalConfig,
}
