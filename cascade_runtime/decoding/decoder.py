"""`Decoder.extend`: the one primitive of the runtime, over a language model and its KV slots.

A row is one request inside one model. Its KV cache holds a prompt (embeddings, visual tokens among them) and then
tokens of the answer. `extend` takes, per row, the prefix of the answer to stand on and drafts beyond it; it rolls the
row back to where its cache agrees, feeds only what is missing, and says what this model would have chosen after the
prefix and after each draft:

    prefill         extend(prefix=[],     drafts=[])          -> 1 choice
    decode          extend(prefix=answer, drafts=[])          -> 1 choice
    verify n drafts extend(prefix=answer, drafts=[d1 .. dn])  -> n + 1 choices
    verify a tree   the same with parents=[-1, 0, 0, ..]: a draft sees the path that leads to it
    prefill + verify in one pass: the same call on a row that has never run

Rollback is lowering a length; a path through a tree is moved together when the next pass stands on it. It knows no
other stage, no channel, no stop condition. `plan.py` says what a row feeds, `grouping.py` who attends together,
`prefixes.py` what prompts share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cascade_runtime.config import SamplingParams
from cascade_runtime.decoding.acceptance.law import laws
from cascade_runtime.decoding.choice import NOT_FINITE, choose
from cascade_runtime.decoding.grouping import attending
from cascade_runtime.decoding.plan import Plan, plan
from cascade_runtime.decoding.prefixes import Prefixes
from cascade_runtime.decoding.row import Extension, PromptEmbeds, Row, States, check_fits
from cascade_runtime.errors import CapacityError
from cascade_runtime.models.language import LanguageModel
from cascade_runtime.models.slot_cache import SlotCache


class Decoder:
    """Rows of requests over one language model. Not thread-safe: one loop owns it.

    compiled: compile passes of one row (`models/compiled.py`), on a CPU. tells_confidence: keep, per row, the largest
    probability of the last position of each pass. keeps: keep, per row, the states of its last pass: what these blocks
    put out, side by side, the last norm counted as one more block; compiled passes do not serve that.
    tells_laws: keep, per row, what each choice of the last pass was drawn from.
    """

    def __init__(self, language: LanguageModel, *, slots: int, max_len: int, compiled: bool = False) -> None:
        self.language = language
        self.cache = language.new_cache(slots, max_len)
        self.shortcut: Any = _shortcut(language, self.cache, compiled=compiled)
        self._free = set(range(slots))
        self._prefixes = Prefixes(self.cache)
        self.passes = 0
        self.tokens_fed = 0
        self.tells_confidence = False
        self.tells_laws = False
        self.keeps: tuple[int, ...] = ()

    @property
    def free_slots(self) -> int:
        return len(self._free)

    @property
    def captured(self) -> int:
        """Shapes of passes that were captured so far, on a GPU: the first of each takes far longer."""
        return getattr(self.shortcut, "captured", 0)

    @property
    def tokens_shared(self) -> int:
        """Positions of prompts that were copied instead of computed."""
        return self._prefixes.tokens_shared

    def admit(self, prompt: PromptEmbeds, sampling: SamplingParams) -> Row:
        """Give a request a slot, with its prefix in it where another slot holds that. Nothing is computed yet.

        Raises `PromptTooLong` when prompt and answer cannot fit a slot, `CapacityError` when no slot is free.
        """
        check_fits(len(prompt), sampling, self.cache.max_len)
        if not self._free:
            raise CapacityError(f"all {self.cache.slots} KV slots are taken")
        row = Row(self._prefixes.slot(self._free, prompt.prefix), prompt, sampling)
        self._free.discard(row.slot)
        self._prefixes.admitted(row)
        return row

    def release(self, row: Row) -> None:
        """Give the slot back; a second call does nothing."""
        if row.released:
            return
        row.released = True
        self._prefixes.released(row)
        if row.poisoned:
            self._scrub(row.slot)
        self._free.add(row.slot)

    def room(self, row: Row, prefix: int) -> int:
        """How many drafts fit the row's slot beyond a prefix of so many tokens."""
        return self.cache.max_len - len(row.prompt) - prefix

    def _scrub(self, slot: int) -> None:
        self.cache.scrub(slot)
        self._prefixes.scrubbed(slot)

    @torch.inference_mode()
    def extend(self, extensions: Sequence[Extension]) -> list[list[int]]:
        """For each extension the choices after its prefix and after each of its drafts (1 + len(drafts) tokens, or
        those that are asked for), none where its prompt is not fed to the end.

        A choice of `NOT_FINITE` means the model produced no usable numbers there. One bad draft spoils all choices of
        its row, so the caller asks again without drafts; a row that fails without drafts should be failed. The next
        call rebuilds such a row from its prompt.
        """
        order, plans, groups = self._plans(extensions)
        choices: list[list[int]] = [[] for _ in extensions]
        for i, chosen in zip(order, self._run(plans, groups), strict=True):
            choices[i] = chosen
        return choices

    @torch.inference_mode()
    def look(self, extensions: Sequence[Extension]) -> list[torch.Tensor]:
        """The same pass, and what choices are made of: float32 logits (choices, V) of each extension."""
        order, plans, groups = self._plans(extensions)
        parts = self._logits(plans, groups).split([each.choices for each in plans])
        looked = list(parts)
        for i, each, part in zip(order, plans, parts, strict=True):
            self._settle(each, finite=bool(part.isfinite().all()))
            looked[i] = part
        return looked

    def _plans(self, extensions: Sequence[Extension]) -> tuple[list[int], list[Plan], list[int]]:
        """An order of the extensions, their plans in it, and how many of them in turn attend together."""
        for each in extensions:
            if each.row.poisoned and not each.row.released:  # a masked NaN still spoils a weighted sum: start anew
                self._scrub(each.row.slot)
                each.row.forget()
        plans = [plan(each, self.cache) for each in extensions]
        order, groups = attending([each.count for each in plans], [each.row.slot for each in plans])
        return order, [plans[i] for i in order], groups

    def _run(self, plans: Sequence[Plan], groups: Sequence[int]) -> list[list[int]]:
        logits = self._logits(plans, groups)
        if not len(logits):
            return [self._settled(each, []) for each in plans]
        if self.tells_confidence:
            sure = iter(logits.softmax(-1).amax(-1).tolist())
            for each in plans:
                for _ in range(each.choices):
                    each.row.confidence = next(sure)
        if self.tells_laws:
            for each, mine in zip(plans, logits.split([each.choices for each in plans]), strict=True):
                each.row.laws = dict(zip(each.chosen_at, laws(mine, each.row.sampling), strict=True))
        params = [each.row.sampling for each in plans for _ in range(each.choices)]
        flat = iter(choose(logits, params, [at for each in plans for at in each.chosen_at]))
        return [self._settled(each, [next(flat) for _ in range(each.choices)]) for each in plans]

    def _logits(self, plans: Sequence[Plan], groups: Sequence[int]) -> torch.Tensor:
        """Logits (choices, V) of one pass, in the order of the plans."""
        self.passes += 1
        self.tokens_fed += sum(each.count for each in plans)
        logits = self._shortened(plans)
        return self._computed(plans, groups) if logits is None else logits

    def _computed(self, plans: Sequence[Plan], groups: Sequence[int]) -> torch.Tensor:
        """Logits (choices, V) of one packed pass."""
        embeds, positions = self._inputs(plans)
        keep: dict[int, torch.Tensor] | None = {} if self.keeps else None
        hidden = self.language.forward(
            embeds,
            slots=[each.row.slot for each in plans],
            starts=[each.start for each in plans],
            counts=[each.count for each in plans],
            positions=positions,
            cache=self.cache,
            groups=groups,
            branches=[each.branches for each in plans],
            keep=keep,
        )
        if keep is not None:
            keep[self.language.num_layers] = hidden
            kept = torch.cat([keep[index] for index in self.keeps], -1).split([each.count for each in plans])
            for each, values in zip(plans, kept, strict=True):
                each.row.states = States(each.start, values)
        asked, fed = [], 0
        for each in plans:
            fed += each.count
            asked += range(fed - each.choices, fed)
        if len(asked) < len(hidden):
            hidden = hidden[torch.tensor(asked, dtype=torch.long, device=hidden.device)]
        return self.language.logits(hidden) if asked else hidden

    def _shortened(self, plans: Sequence[Plan]) -> torch.Tensor | None:
        """The same by the shortcut; None where it does not serve this: prompts, many tokens."""
        if self.shortcut is None or any(each.prompt_count for each in plans):
            return None
        logits = self.shortcut.logits(
            [each.wanted[each.first_token :] for each in plans],
            slots=[each.row.slot for each in plans],
            starts=[each.start for each in plans],
            positions=[each.positions for each in plans],
            branches=[each.branches for each in plans],
            keeps=self.keeps,
        )
        if logits is None:
            return None
        if self.keeps:
            for each, values in zip(plans, self.shortcut.states, strict=False):  # rows that pad the pass come last
                each.row.states = States(each.start, values[: each.count].clone())
        longest = logits.shape[1]
        asked = [
            i * longest + each.count - each.choices + j for i, each in enumerate(plans) for j in range(each.choices)
        ]
        flat = logits.flatten(0, 1)
        return flat if len(asked) == len(flat) else flat[torch.tensor(asked, device=flat.device)]

    def _inputs(self, plans: Sequence[Plan]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (N, D) and positions (N,) or (3, N) of what the rows feed, one after the other."""
        ids: list[int] = []
        at: list[int] = []
        prefills: list[tuple[slice, Plan]] = []
        for each in plans:
            if each.prompt_count:
                prefills.append((slice(len(ids), len(ids) + each.prompt_count), each))
            ids += [0] * each.prompt_count + each.wanted[each.first_token :]
            at += [*[0] * each.prompt_count, *each.positions]
        embeds = self.language.embed(ids)
        positions = torch.tensor(at, device=self.language.device)
        if self.language.position_axes > 1:
            positions = positions.repeat(self.language.position_axes, 1)
        for here, each in prefills:
            fed = slice(each.start, each.start + each.prompt_count)
            embeds[here] = each.row.prompt.embeds[fed]
            positions[..., here] = each.row.prompt.positions[..., fed]
        return embeds, positions

    def _settled(self, each: Plan, chosen: list[int]) -> list[int]:
        self._settle(each, finite=NOT_FINITE not in chosen)
        return chosen

    def _settle(self, each: Plan, *, finite: bool) -> None:
        row = each.row
        row.held = each.start + each.count
        row.tokens, row.above = list(each.wanted), each.above
        row.poisoned = row.poisoned or not finite
        self._prefixes.fed(row)


def _shortcut(language: LanguageModel, cache: SlotCache, *, compiled: bool) -> Any:
    """A faster way for passes of few tokens, where there is one. Imported on demand: a GPU's kernels are only there
    with a GPU's PyTorch, and a compiler takes its time.
    """
    if compiled:
        from cascade_runtime.models.compiled import Compiled

        return Compiled(language, cache)
    if str(language.device).startswith("cuda") and len(language.devices) == 1:
        from cascade_runtime.models.replay import Replays

        return Replays(language, cache)
    return None
