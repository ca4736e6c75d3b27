"""The whole cascade in one process: the slow, obvious reference. Everything faster must give its tokens.

    Engine.load(recipe).generate([request, ...])  ->  [Answer | CascadeError, ...]

A cascade of levels 0 .. n-1, lightest first; n = 1 is plain autoregressive decoding. `_propose(k, ...)` is the
definition: level 0 proposes by choosing one token after another; level k > 0 lets level k-1 propose, looks along the
proposal in one pass, keeps the run that equals its own choices and adds its next own choice. The last level's prefix
is the answer. So the answer is the last level's own sequence of choices, whatever the others do. Where the recipe has
a [tree], level 0 proposes one, and level 1 keeps the path through it that equals its own choices; heads beside a target
that is alone propose to it in the same way. What is kept is for the recipe's rule of acceptance to say
(`decoding/acceptance/`): that was the default one, under "ratio" and "traversal" the answer is a draw from the last
level's law, and what is named lossy is neither.

Requests of a batch advance together, raggedly; one that ends makes room for the next that waits. Nothing overlaps in
here: overlap is what `actors/` are for.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from cascade_runtime.api import Answer, GenerateRequest, Piece, Rejection, Timings, in_words
from cascade_runtime.api.answer import MAX_REJECTIONS
from cascade_runtime.config import Recipe, SamplingParams
from cascade_runtime.config.acceptance import TRAVERSAL
from cascade_runtime.decoding.acceptance.acceptance import Claims
from cascade_runtime.decoding.acceptance.from_recipe import acceptance_from_recipe
from cascade_runtime.decoding.acceptance.traverser import Pair, Traverser
from cascade_runtime.decoding.beside import Heads
from cascade_runtime.decoding.choice import NOT_FINITE
from cascade_runtime.decoding.level import Level, check_one_vocabulary
from cascade_runtime.decoding.row import Extension, Row
from cascade_runtime.decoding.stopping import Stopper
from cascade_runtime.decoding.trees import Grower, Tree, shape_of
from cascade_runtime.emulation.loading import load_branch, load_level, load_verifier
from cascade_runtime.errors import CascadeError, StageError
from cascade_runtime.events import Events
from cascade_runtime.metrics import EdgeCounters
from cascade_runtime.vision.features import VisualFeatures
from cascade_runtime.vision.front_end import FrontEnd, Seen

Tokens = list[tuple[int, int]]  # (token id, mask of the stages that stand by it)


@dataclass(frozen=True)
class _Proposal:
    """What a level looks along: a chain, or the nodes of a tree."""

    tokens: Tokens
    tree: Tree | None = None

    @property
    def depth(self) -> int:
        """Tokens of the longest path."""
        return len(self.tokens) if self.tree is None else 1 + max(self.tree.depths, default=-1)


@dataclass(eq=False)
class _Live:
    """A request being answered: a row in every level that still takes part, and the answer so far."""

    request: GenerateRequest
    seen: Seen
    rows: list[Row | None]
    stopper: Stopper
    edges: list[EdgeCounters]
    started: float
    notes: list[str]
    prompt_tokens: int
    rejections: list[Rejection] = field(default_factory=list)
    answer: Tokens = field(default_factory=list)
    claims: Claims = field(default_factory=dict)
    passes: int = 0
    first_token_ms: float = 0.0
    shown: int = 0
    finish: str | None = None

    @property
    def limit(self) -> int:
        return self.request.sampling.max_tokens

    def row(self, k: int) -> Row:
        row = self.rows[k]
        assert row is not None
        return row

    def goes_on(self, k: int, said: Tokens) -> bool:
        """Whether level k has more to propose than this: it is there, and was not at a loss for the last of it."""
        row = self.rows[k]
        return row is not None and not self.ended(said) and (not said or row.confidence > 0)

    def note_refused(self, k: int, at: int, draft: Tokens, said: Tokens) -> None:
        """Level k was proposed `draft` at position `at`, and said something else from some token of it on."""
        agreed = 0
        while agreed < min(len(draft), len(said)) and draft[agreed][0] == said[agreed][0]:
            agreed += 1
        if said and agreed < len(draft) and len(self.rejections) < MAX_REJECTIONS:
            tokens, masks = zip(*draft[agreed:], strict=True)
            self.rejections.append(Rejection(at + agreed, k, tokens, masks))

    def ended(self, tokens: Tokens) -> bool:
        return bool(tokens) and self.stopper.is_end(tokens[-1][0])


class Engine:
    """All levels and the front end of one recipe, in this process."""

    def __init__(self, recipe: Recipe, levels: Sequence[Level], front_end: FrontEnd) -> None:
        self.recipe = recipe
        self.levels = list(levels)
        self.front_end = front_end
        self.gammas = recipe.cascade.num_draft_tokens
        light, heads = self.levels[0], recipe.target.heads
        traverses = recipe.cascade.acceptance == TRAVERSAL
        self.traverser = Traverser(recipe, light, self.levels[-1]) if traverses else None
        grows = recipe.tree and not heads and not traverses
        self.grower = Grower(light.decoder, shape_of(recipe.tree), light.ends) if grows and recipe.tree else None
        self.heads = Heads(recipe.target, recipe.tree, light.decoder) if heads else None
        self.acceptance = acceptance_from_recipe(recipe)
        for level in self.levels:
            level.decoder.tells_laws = self.acceptance.weighs_laws
        check_one_vocabulary({level.name: level.tokenizer_tag() for level in self.levels})

    @classmethod
    def load(cls, recipe: Recipe) -> Engine:
        """Load every checkpoint of a recipe; emulated stages give their tokens without waiting."""
        levels = [load_level(recipe, index, wait=False) for index in range(len(recipe.stages))]
        branch, verifier = load_branch(recipe, wait=False), load_verifier(recipe, wait=False)
        return cls(recipe, levels, FrontEnd(recipe, branch, verifier))

    def stopper(self, sampling: SamplingParams) -> Stopper:
        """What ends an answer of the target, and turns its tokens into text."""
        return self.levels[-1].stopper(sampling)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Answer | CascadeError]:
        """Answer all requests, in order; a request that fails gives its error and harms no other."""
        done: dict[int, Answer | CascadeError] = {}
        for index, update in self.run(requests):
            if isinstance(update, Answer | CascadeError):
                done[index] = update
        return [done[index] for index in range(len(requests))]

    def run(
        self, requests: Sequence[GenerateRequest], concurrency: int | None = None
    ) -> Iterator[tuple[int, Answer | CascadeError | Piece]]:
        """Answer all requests, as many at a time as there are slots or `concurrency` says, yielding (index, piece of
        text) as tokens are confirmed and (index, answer or error) last.
        """
        slots = self.recipe.cascade.slots
        most = slots if concurrency is None else min(concurrency, slots)
        waiting = deque(enumerate(requests))
        live: dict[int, _Live] = {}
        try:
            while waiting or live:
                while waiting and len(live) < most:
                    index, request = waiting.popleft()
                    try:
                        live[index] = self._admit(request)
                    except CascadeError as error:
                        yield index, error
                if live:
                    yield from self._round(live)
        finally:
            for one in live.values():
                self._release(one)

    def _round(self, live: dict[int, _Live]) -> Iterator[tuple[int, Answer | CascadeError | Piece]]:
        before = {index: len(one.answer) for index, one in live.items()}
        rows = list(live.values())
        top = len(self.levels) - 1
        for one, tokens in zip(rows, self._advance(top, rows, [one.answer for one in rows], None), strict=True):
            one.answer += tokens
            one.passes += 1
            one.claims.clear()
            if self.heads is not None and tokens:
                self.heads.observe(one.row(top), [token for token, _ in one.answer])
        for index, one in list(live.items()):
            if len(one.answer) == before[index]:
                del live[index]
                self._release(one)
                yield index, StageError(self.levels[top].name, one.request.request_id, "logits are not finite")
                continue
            length, one.finish = one.stopper.cut([token for token, _ in one.answer], before[index])
            del one.answer[length:]
            if not before[index]:
                one.first_token_ms = 1000 * (time.perf_counter() - one.started)
            tokens = [token for token, _ in one.answer]
            text = one.stopper.text(tokens) if one.finish else one.stopper.shown(tokens)
            masks = [mask for _, mask in one.answer[before[index] :]]
            yield index, Piece(text[one.shown :], tokens[before[index] :], masks)
            one.shown = max(one.shown, len(text))
            if one.finish:
                del live[index]
                for level, row in zip(self.levels, one.rows, strict=True):
                    if row is not None:
                        level.learn(row, tokens)
                self._release(one)
                yield index, self._answer(one)

    def _propose(self, k: int, rows: list[_Live], bases: list[Tokens], wants: list[int]) -> list[Tokens]:
        """Up to wants[i] tokens that level k would say after bases[i]; fewer where it ends the answer or has failed."""
        out: list[Tokens] = [[] for _ in rows]
        going = list(range(len(rows)))
        while True:
            going = [i for i in going if len(out[i]) < wants[i] and rows[i].goes_on(k, out[i])]
            if not going:
                return out
            left = [wants[i] - len(out[i]) for i in going]
            grown = self._advance(k, [rows[i] for i in going], [bases[i] + out[i] for i in going], left)
            for i, tokens in zip(going, grown, strict=True):
                out[i] += tokens

    def _advance(self, k: int, rows: list[_Live], bases: list[Tokens], most: list[int] | None) -> list[Tokens]:
        """One pass of level k over what level k-1 proposes: the kept run and one token of its own (or nothing:
        failed).
        """
        proposals, own = [_Proposal([]) for _ in rows], self.acceptance.own
        room = [one.limit - len(base) - own for one, base in zip(rows, bases, strict=True)]
        if most is not None:
            room = [min(each, left - own) for each, left in zip(room, most, strict=True)]
        if self.traverser is not None:
            return self._traverse(self.traverser, rows, bases, room)
        if not k and self.heads is not None:
            trees = self.heads.grow([one.row(0) for one in rows], room)
            proposals = [self._proposed(k, one, base, tree) for one, base, tree in zip(rows, bases, trees, strict=True)]
        elif k:
            if k == 1 and self.grower is not None:
                proposals = self._grow(self.grower, rows, bases, room)
            else:
                wants = [max(0, min(self.gammas[k - 1], each)) for each in room]
                proposals = [_Proposal(chain) for chain in self._propose(k - 1, rows, bases, wants)]
        extensions = [
            Extension(
                one.row(k),
                [token for token, _ in base],
                [token for token, _ in each.tokens[: len(each.tokens) - 1 + own]],
                parents=None if each.tree is None else each.tree.parents,
            )
            for one, base, each in zip(rows, bases, proposals, strict=True)
        ]
        choices = self.levels[k].decoder.extend(extensions)
        for i, chosen in enumerate(choices):
            if NOT_FINITE in chosen and proposals[i].tokens:  # one draft may have spoilt the pass: ask without any
                proposals[i] = _Proposal([])
                (choices[i],) = self.levels[k].decoder.extend([Extension(rows[i].row(k), extensions[i].prefix)])
        said = [self._keep(k, *each) for each in zip(rows, proposals, choices, strict=True)]
        for one, base, each, kept in zip(rows, bases, proposals, said, strict=True):
            if each.tree is None:  # of a tree most is refused
                one.note_refused(k, len(base), each.tokens, kept)
        return said

    def _traverse(self, traverser: Traverser, rows: list[_Live], bases: list[Tokens], room: list[int]) -> list[Tokens]:
        """One pass of the target over trees that the drafter has sampled."""
        prefixes = [[token for token, _ in base] for base in bases]
        asked = zip(rows, prefixes, room, strict=True)
        pairs = [Pair(one.rows[0], one.row(1), prefix, most) for one, prefix, most in asked]
        said: list[Tokens] = []
        for one, each in zip(rows, traverser.round(pairs), strict=True):
            for k in (0, 1):
                row = one.rows[k]
                if row is not None and row.poisoned:
                    self.levels[k].decoder.release(row)
                    one.rows[k] = None
            kept: Tokens = [(token, 3) for token in each.kept]
            goes_on = each.token is not None and not one.ended(kept)
            one.edges[0].observe(each.depth, len(kept), bonus=int(goes_on))
            said.append([*kept, (each.token, 2)] if goes_on and each.token is not None else kept)
        return said

    def _grow(self, grower: Grower, rows: list[_Live], bases: list[Tokens], deepest: list[int]) -> list[_Proposal]:
        """Level 0 proposes a tree to each row that it still takes part in."""
        proposals = [_Proposal([], Tree()) for _ in rows]
        going = [i for i, (one, base) in enumerate(zip(rows, bases, strict=True)) if one.goes_on(0, base[:0])]
        mine = [rows[i].row(0) for i in going]
        trees = grower.grow(mine, [[token for token, _ in bases[i]] for i in going], [deepest[i] for i in going])
        for i, row, tree in zip(going, mine, trees, strict=True):
            proposals[i] = self._proposed(1, rows[i], bases[i], tree)
            if row.poisoned:
                self.levels[0].decoder.release(row)
                rows[i].rows[0] = None  # the others go on without it
        return proposals

    def _proposed(self, k: int, one: _Live, base: Tokens, tree: Tree) -> _Proposal:
        """A tree for level k, as far as its slot has room."""
        tree = tree.only(range(min(len(tree), self.levels[k].decoder.room(one.row(k), len(base)))))
        return _Proposal([(token, 1) for token in tree.tokens], tree)

    def _keep(self, k: int, one: _Live, proposal: _Proposal, choices: list[int]) -> Tokens:
        if NOT_FINITE in choices:
            self.levels[k].decoder.release(one.row(k))
            one.rows[k] = None  # the others go on without it
            return []
        row, drafts = one.row(k), [token for token, _ in proposal.tokens]
        if proposal.tree is not None:
            accepted = proposal.tree.follow(choices)
            says: int | None = choices[accepted[-1] + 1 if accepted else 0]
        else:
            seed = one.request.sampling.seed
            run, says = self.acceptance.settle(k, seed, one.claims, row.laws, drafts, choices)
            accepted = list(range(run))
        kept = [(token, mask | 1 << k) for token, mask in (proposal.tokens[at] for at in accepted)]
        ended = one.ended(kept)
        if one.edges and (k or self.heads is not None):
            bonus = 0 if ended or says is None else 1
            one.edges[max(k - 1, 0)].observe(proposal.depth, len(accepted), bonus=bonus)
        return kept if ended or says is None else [*kept, (says, 1 << k)]

    def _admit(self, request: GenerateRequest) -> _Live:
        started = time.perf_counter()
        seen = self.front_end.see(cast(Events, request.events), speculate=request.speculate)
        rows: list[Row | None] = []
        notes = [*self.recipe.marks, *seen.notes]
        try:
            for level, features in zip(self.levels[:-1], seen.features, strict=False):
                rows.append(self._admit_drafter(level, request, features, notes))
            target = self.levels[-1].admit(request.question, seen.for_target, request.sampling)
            rows.append(target)
        except BaseException:
            for level, row in zip(self.levels, rows, strict=False):
                if row is not None:
                    level.decoder.release(row)
            raise
        if self.acceptance.note and any(rows[:-1]):
            notes.append(self.acceptance.note)
        names = [*([self.heads.kind] if self.heads else []), *(level.name for level in self.levels)]
        edges = [EdgeCounters(f"{light}-{heavy}{self.acceptance.mark}") for light, heavy in itertools.pairwise(names)]
        stopper = self.levels[-1].stopper(request.sampling)
        return _Live(request, seen, rows, stopper, edges, started, notes, len(target.prompt))

    @staticmethod
    def _admit_drafter(
        level: Level, request: GenerateRequest, features: VisualFeatures | None, notes: list[str]
    ) -> Row | None:
        """A drafter that cannot take part is a note, not an error: the answer does not depend on it."""
        if not request.speculate or features is None:
            return None
        try:
            return level.admit(request.question, features, request.sampling)
        except CascadeError as error:
            notes.append(f"without {level.name}: {error}")
            return None

    def _release(self, one: _Live) -> None:
        if self.heads is not None and one.rows[-1] is not None:
            self.heads.forget(one.rows[-1])
        for level, row in zip(self.levels, one.rows, strict=True):
            if row is not None:
                level.decoder.release(row)

    def _answer(self, one: _Live) -> Answer:
        tokens = [token for token, _ in one.answer]
        total_ms = 1000 * (time.perf_counter() - one.started)
        return Answer(
            request_id=one.request.request_id,
            text=one.stopper.text(tokens),
            token_ids=tuple(tokens),
            pieces=one.stopper.pieces(tokens),
            finish_reason=one.finish or "length",
            levels=tuple(level.name for level in self.levels),
            masks=tuple(mask for _, mask in one.answer),
            timings=Timings(one.first_token_ms, total_ms, one.seen.spans),
            edges=tuple(one.edges),
            gate=one.seen.gate,
            mode=self.recipe.cascade.mode,
            target_passes=one.passes,
            prompt_tokens=one.prompt_tokens,
            notes=tuple(one.notes),
            rejections=in_words(one.rejections, one.stopper.words),
        )
