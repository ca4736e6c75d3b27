"""`SupervisionConfig`: how a pipeline watches its stages, and how often it starts one anew."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_runtime.config.checks import integer, number
from cascade_runtime.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SupervisionConfig:
    """How a pipeline of actors watches its stages, and restarts those that die or hang.

    restarts: of one stage in any `window_s` seconds, at most; a stage that fails more often is given up, and requests
    that need it fail. 0: nothing is watched, nothing restarted. backoff_s: pause before a stage is started anew that
    has not been up for ten seconds; it doubles from one to the next, up to ten seconds. silent_s: a process that
    answers no ping for so long hangs, and is killed. stuck_s: so does a stage whose loop has been at one thing for so
    long; a first compiled pass takes most of a minute.
    """

    restarts: int = 8
    window_s: float = 120.0
    backoff_s: float = 0.25
    silent_s: float = 1.5
    stuck_s: float = 120.0

    def __post_init__(self) -> None:
        integer(ConfigError, "supervision.restarts", self.restarts, 0, 1000)
        for name, low, high in (
            ("window_s", 1.0, 86_400.0),
            ("backoff_s", 0.0, 60.0),
            ("silent_s", 0.2, 600.0),
            ("stuck_s", 0.2, 3600.0),
        ):
            number(ConfigError, f"supervision.{name}", getattr(self, name), low, high)
