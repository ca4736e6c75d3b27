"""How the passes of a language stage are computed: along what others drafted, or what the stage drafts by itself.

    Along      a row's share is what it was sent, possibly nothing: one `extend`
    Growing    the lightest stage of a recipe with a [tree]: each row gets a tree on its prefix, a pass per layer; and
               where it foresees outcomes, it drafts for those while the tree is verified
    Beside     a target that is alone, with heads beside it: they propose trees from its states, it looks along them

All of it is drafting: what a target chooses is its own, whatever it looks along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from actors.rows import ActiveRow
from cascade_runtime.config import Recipe
from cascade_runtime.decoding.beside import Heads
from cascade_runtime.decoding.choice import NOT_FINITE
from cascade_runtime.decoding.level import Level
from cascade_runtime.decoding.trees import Foresight, Grower, grower, shape_of
from cascade_runtime.scheduling.stage_scheduler import Task
from cascade_runtime.scheduling.work import Grown, Settled, Work
from cascade_runtime.tracing import Share

Chosen = list[int] | Grown


class Along:
    """One `extend` over all rows. upstream: who drafts, as far as the stage itself knows."""

    upstream = ""

    def __init__(self, level: Level) -> None:
        self._decoder = level.decoder

    def run(self, rows: Sequence[ActiveRow], tasks: Sequence[Task]) -> tuple[list[Task], Sequence[Chosen]]:
        """What was looked along, and each row's choices or the tree it has drafted."""
        return list(tasks), self._extend(rows, tasks)

    def settled(self, one: ActiveRow) -> None:
        """A row's pass is over, and what it stands by is settled."""

    def forget(self, one: ActiveRow) -> None:
        """A row has ended, or its prompt is another."""

    def foresee(self) -> list[int]:
        """With nothing to run: one pass for what may be asked next. The requests it was for."""
        return []

    def _extend(self, rows: Sequence[ActiveRow], tasks: Sequence[Task]) -> list[list[int]]:
        return self._decoder.extend([one.extension(task) for one, task in zip(rows, tasks, strict=True)])


class Growing(Along):
    """Trees, once a row's prompt is fed."""

    def __init__(self, level: Level, recipe: Recipe) -> None:
        super().__init__(level)
        assert recipe.tree is not None  # or nobody asks for this
        self._grower = Grower(level.decoder, shape_of(recipe.tree), level.ends)
        self.foresight = Foresight(self._grower, level.decoder, recipe.tree.outcomes)
        self._foresees = recipe.tree.outcomes > 0

    def run(self, rows: Sequence[ActiveRow], tasks: Sequence[Task]) -> tuple[list[Task], Sequence[Chosen]]:
        """See `Along.run`. No tree reaches beyond the answer's last token but one: that is the verifier's own."""
        pairs = list(zip(rows, tasks, strict=True))
        feeding = [pair for pair in pairs if pair[1].unfinished]
        if feeding:
            self._extend([one for one, _ in feeding], [task for _, task in feeding])
        wanting = [one for one, task in pairs if not task.unfinished]
        grown = self._grower.finish([self._begun(one) for one in wanting])
        trees = {one.handle: tree for one, tree in zip(wanting, grown, strict=True)}
        chosen: list[Chosen] = []
        for one, _ in pairs:
            tree = trees.get(one.handle)
            if tree is None:
                chosen.append([])
            elif one.row.poisoned:
                chosen.append([NOT_FINITE])
            else:
                chosen.append(Grown(tuple(tree.tokens), tuple(tree.parents)))
                if self._foresees:
                    self.foresight.planted(one.handle, one.row, one.standing.prefix, tree, _deepest(one))
        return list(tasks), chosen

    def forget(self, one: ActiveRow) -> None:
        """What was foreseen for it too."""
        self.foresight.forget(one.handle)

    def foresee(self) -> list[int]:
        """A layer of the trees that may follow those that are verified now."""
        return self.foresight.pass_ahead()

    def _begun(self, one: ActiveRow) -> grower.Growing:
        prefix, deepest = one.standing.prefix, _deepest(one)
        begun = self.foresight.came_true(one.handle, prefix, deepest)
        return grower.Growing(one.row, prefix, deepest) if begun is None or one.row.poisoned else begun


def _deepest(one: ActiveRow) -> int:
    """Tokens that a tree may reach beyond the prefix: the answer's last is the verifier's own."""
    return min(one.standing.room, one.standing.left - 1)


class Beside(Along):
    """A target's rows look along what its heads propose, unless the last proposal spoilt their numbers."""

    def __init__(self, level: Level, recipe: Recipe) -> None:
        super().__init__(level)
        self._heads = Heads(recipe.target, recipe.tree, level.decoder)
        self.upstream = self._heads.kind

    def run(self, rows: Sequence[ActiveRow], tasks: Sequence[Task]) -> tuple[list[Task], Sequence[Chosen]]:
        """See `Along.run`."""
        alone = [task.unfinished or task.row.alone for task in tasks]
        most = [0 if quiet else one.standing.left - 1 for one, quiet in zip(rows, alone, strict=True)]
        trees = self._heads.grow([one.row for one in rows], most)
        along: list[Task] = []
        for one, task, tree in zip(rows, tasks, trees, strict=True):
            prefix = task.work.prefix
            fits = tree.only(range(min(len(tree), max(0, self._decoder.room(one.row, len(prefix))))))
            drafts = Work(prefix, tuple(fits.tokens), (1,) * len(fits), tuple(fits.parents))
            along.append(replace(task, work=drafts) if len(fits) else task)
        return along, self._extend(rows, along)

    def settled(self, one: ActiveRow) -> None:
        """The heads take over its states."""
        self._heads.observe(one.row, one.standing.prefix)

    def forget(self, one: ActiveRow) -> None:
        """The heads too."""
        self._heads.forget(one.row)


def passes_of(recipe: Recipe, index: int, level: Level) -> Along:
    """How the stage of level `index` computes."""
    if recipe.target.heads:
        return Beside(level, recipe)
    return Growing(level, recipe) if recipe.tree is not None and not index else Along(level)


def shares(tasks: Sequence[Task], outcomes: Sequence[tuple[Task, Settled]], step: str) -> tuple[Share, ...]:
    """What each row had of a pass, for the trace. step: what a pass is that feeds no prompt."""
    accepted = {task.row.handle: each.accepted for task, each in outcomes}
    return tuple(
        Share(at, "prefill" if task.prompt else step, len(task.work.drafts), accepted.get(at, 0))
        for at, task in ((task.row.handle, task) for task in tasks)
    )
