"""`readiness`: would a request be answered now? `Vitals`: what a replica knows of its pipeline's health."""

from __future__ import annotations

from typing import Any, Protocol

from cluster.serving.gateway import Gateway
from cluster.serving.refusals import overloaded


class Vitals(Protocol):
    """What a replica knows of its pipeline's health."""

    async def gone(self) -> tuple[str, ...]:
        """Stages that are silent or dead."""
        ...

    async def stats(self) -> dict[str, dict[str, Any]]:
        """What the stages say of themselves."""
        ...

    async def canary(self) -> dict[str, Any]:
        """One token through all of them, see `Canary.sing`."""
        ...


async def readiness(gateway: Gateway, vitals: Vitals) -> tuple[str, ...]:
    """The stages that answers are made without. Raises `Refusal` where there would be none."""
    gone = await vitals.gone()
    if gateway.draining:
        raise overloaded("the server is draining", "draining")
    if {"controller", "encoder", "adapter", gateway.recipe.target.name} & set(gone):
        raise overloaded(f"silent or dead: {', '.join(gone)}", "not_ready")
    return gone
