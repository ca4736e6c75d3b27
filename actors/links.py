"""`Links`: a language stage's links to its neighbours. Opened at the start; lost when a neighbour dies; opened again,
under a higher epoch, when there is one again.

    lighter stage   listen(spec) ---------.              accept() -> its downstream
    heavier stage                         `--> connect(spec)      -> its upstream

A link's epoch is its spec's. A peer of another epoch is refused by the handshake, and what still arrives with another
one by `Standing`: whoever hung while the others went on speaks to nobody.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from actors.neighbour import Neighbour
from cascade_runtime.channels import ChannelSpec, Listener, connect, listen
from cascade_runtime.config import Recipe
from cascade_runtime.errors import ChannelClosed, ChannelError
from cascade_runtime.messages import DraftBlock, Verdict
from cascade_runtime.scheduling.stage_scheduler import StageScheduler
from cascade_runtime.tracing import Tracer


class Links:
    """Both links of stage `index`. `upstream` and `downstream` are changed by the stage's loop alone once it runs."""

    def __init__(self, recipe: Recipe, index: int, tracer: Tracer) -> None:
        self._recipe, self._index, self._tracer = recipe, index, tracer
        self.upstream: Neighbour[DraftBlock] | None = None
        self.downstream: Neighbour[Verdict] | None = None
        self._listener: Listener | None = None
        self._refused = 0  # by neighbours that are gone

    def __iter__(self) -> Iterator[Neighbour[Any]]:
        """The neighbours that are there."""
        return iter([each for each in (self.upstream, self.downstream) if each is not None])

    @property
    def refused(self) -> int:
        """Messages that came to nothing, on all links so far."""
        return self._refused + sum(each.refused for each in self)

    def listen(self, spec: ChannelSpec) -> ChannelSpec:
        """Wait for the next stage at an address that is returned; an earlier address is given up."""
        former, self._listener = self._listener, listen(spec)
        if former is not None:
            former.close()
        return self._listener.spec

    def connect(self, spec: ChannelSpec, timeout_s: float) -> Neighbour[DraftBlock]:
        """A link to the previous stage. Raises `ChannelError`, `DeadlineExceeded`."""
        name = self._recipe.stages[self._index - 1].name
        return Neighbour(name, connect(spec, timeout_s), DraftBlock, self._tracer)

    @property
    def listens(self) -> bool:
        """Whether a next stage is waited for."""
        return self._listener is not None

    def accept(self, timeout_s: float) -> Neighbour[Verdict]:
        """A link to the next stage, which comes to the address of `listen` and is the last to be let in there: of a
        process that is killed no socket stays behind. Raises `ChannelError`, `DeadlineExceeded`.
        """
        if self._listener is None:
            raise ChannelError(f"stage {self._recipe.stages[self._index].name} listens nowhere")
        listener = self._listener
        channel = listener.accept(timeout_s)
        listener.close()
        if self._listener is listener:  # `listen` may have been called meanwhile
            self._listener = None
        return Neighbour(self._recipe.stages[self._index + 1].name, channel, Verdict, self._tracer)

    def drop(self, neighbour: Neighbour[Any] | None) -> None:
        """Close this link; it is neither neighbour's any more."""
        if neighbour is None:
            return
        neighbour.channel.close()
        self._refused += neighbour.refused
        if neighbour is self.upstream:
            self.upstream = None
        elif neighbour is self.downstream:
            self.downstream = None

    def renew(self, scheduler: StageScheduler, neighbour: Neighbour[Any], *, upstream: bool) -> None:
        """This link, in place of what there was on that side."""
        self.drop(self.upstream if upstream else self.downstream)
        epoch, now = neighbour.channel.spec.epoch, time.monotonic()
        if upstream:
            self.upstream = neighbour
            scheduler.renew_upstream(epoch, now)
        else:
            self.downstream = neighbour
            scheduler.renew_downstream(epoch, now)

    def told(self, scheduler: StageScheduler) -> None:
        """Let a scheduler know which of them are there."""
        scheduler.upstream, scheduler.downstream = self.upstream is not None, self.downstream is not None

    def flush(self) -> Iterator[Neighbour[Any]]:
        """Send what both neighbours were told; yields those that are gone."""
        for neighbour in self:
            try:
                neighbour.flush()
            except ChannelClosed:
                yield neighbour

    def close(self) -> None:
        """Both links, and the address."""
        for neighbour in self:
            neighbour.channel.close()
        if self._listener is not None:
            self._listener.close()


def epoch_of(neighbour: Neighbour[Any] | None) -> int | None:
    """The epoch of a link that is there."""
    return None if neighbour is None else neighbour.channel.spec.epoch
