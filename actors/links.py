"""`Links`: a language stage's links to its neighbours. Opened at the start; lost when a neighbour dies; opened again,
under a higher epoch, when there is one again.

    lighter stage   listen(spec) ---------.              accept() -> its downstream
    heavier stage                         `--> connect(spec)      -> its upstream

There is one to each replica of the stage before and of the one after, by its number there. A link's epoch is its
spec's, and no other link between the two stages has it. A peer of another epoch is refused by the handshake, and what
still arrives with another one by `Standing`: whoever hung while the others went on speaks to nobody, and of a request
only those replicas speak that have it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from actors.neighbour import Neighbour
from cascade_runtime.channels import ChannelSpec, Listener, connect, listen
from cascade_runtime.config import Recipe
from cascade_runtime.errors import ChannelClosed, ChannelError
from cascade_runtime.messages import DraftBlock, Verdict
from cascade_runtime.scheduling.stage_scheduler import StageScheduler
from cascade_runtime.tracing import Tracer

_NO_LINK = 2**32 - 1


class Links:
    """All links of stage `index`. `upstream` and `downstream` are changed by the stage's loop alone once it runs."""

    def __init__(self, recipe: Recipe, index: int, tracer: Tracer) -> None:
        self._recipe, self._index, self._tracer = recipe, index, tracer
        self.upstream: dict[int, Neighbour[DraftBlock]] = {}
        self.downstream: dict[int, Neighbour[Verdict]] = {}
        self._listeners: dict[int, Listener] = {}
        self._refused = 0  # by neighbours that are gone

    def __iter__(self) -> Iterator[Neighbour[Any]]:
        """The neighbours that are there."""
        return iter([*self.upstream.values(), *self.downstream.values()])

    @property
    def refused(self) -> int:
        """Messages that came to nothing, on all links so far."""
        return self._refused + sum(each.refused for each in self)

    def listen(self, spec: ChannelSpec, replica: int = 0) -> ChannelSpec:
        """Wait for a replica of the next stage at an address that is returned; an earlier one is given up."""
        former, self._listeners[replica] = self._listeners.get(replica), listen(spec)
        if former is not None:
            former.close()
        return self._listeners[replica].spec

    def connect(self, spec: ChannelSpec, timeout_s: float, replica: int = 0) -> Neighbour[DraftBlock]:
        """A link to a replica of the previous stage. Raises `ChannelError`, `DeadlineExceeded`."""
        name = self._recipe.stages[self._index - 1].members[replica]
        return Neighbour(name, connect(spec, timeout_s), DraftBlock, self._tracer)

    @property
    def awaited(self) -> list[int]:
        """The replicas of the next stage that are waited for."""
        return sorted(self._listeners)

    def accept(self, timeout_s: float, replica: int = 0) -> Neighbour[Verdict]:
        """A link to a replica of the next stage, which comes to the address of `listen` and is the last to be let in
        there: of a process that is killed no socket stays behind. Raises `ChannelError`, `DeadlineExceeded`.
        """
        listener = self._listeners.get(replica)
        if listener is None:
            raise ChannelError(f"stage {self._recipe.stages[self._index].name} listens nowhere")
        channel = listener.accept(timeout_s)
        listener.close()
        if self._listeners.get(replica) is listener:  # `listen` may have been called meanwhile
            del self._listeners[replica]
        return Neighbour(self._recipe.stages[self._index + 1].members[replica], channel, Verdict, self._tracer)

    def drop(self, neighbour: Neighbour[Any] | None) -> None:
        """Close this link; it is no neighbour's any more."""
        if neighbour is None:
            return
        neighbour.channel.close()
        self._refused += neighbour.refused
        for side in (self.upstream, self.downstream):
            for replica in [number for number, each in side.items() if each is neighbour]:
                del side[replica]

    def renew(self, scheduler: StageScheduler, neighbour: Neighbour[Any], replica: int, *, upstream: bool) -> None:
        """This link, in place of what there was to that replica on that side."""
        side: dict[int, Neighbour[Any]] = self.upstream if upstream else self.downstream
        self.drop(side.get(replica))
        side[replica] = neighbour
        renewed = scheduler.renew_upstream if upstream else scheduler.renew_downstream
        renewed(neighbour.channel.spec.epoch, time.monotonic(), replica)

    def epochs(self, upstream: int, downstream: int) -> tuple[int, int]:
        """Of the links to a replica upstream and to one downstream; what no link has, where there is none."""
        above, below = epochs_of(self.upstream), epochs_of(self.downstream)
        return above.get(upstream, _NO_LINK), below.get(downstream, _NO_LINK)

    def told(self, scheduler: StageScheduler) -> None:
        """Let a scheduler know which of them are there."""
        scheduler.upstream, scheduler.downstream = set(self.upstream), set(self.downstream)

    def flush(self) -> Iterator[Neighbour[Any]]:
        """Send what all neighbours were told; yields those that are gone."""
        for neighbour in self:
            try:
                neighbour.flush()
            except ChannelClosed:
                yield neighbour

    def close(self) -> None:
        """All links, and the addresses."""
        for neighbour in self:
            neighbour.channel.close()
        for listener in list(self._listeners.values()):
            listener.close()


def epochs_of(side: Mapping[int, Neighbour[Any]]) -> dict[int, int]:
    """The epochs of the links on one side, by replica."""
    return {replica: neighbour.channel.spec.epoch for replica, neighbour in list(side.items())}
