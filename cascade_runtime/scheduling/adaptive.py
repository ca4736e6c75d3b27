"""`Adaptive`: the policy that decides from measured numbers only.

    measured                                       decided
      cost of a pass(rows, tokens, context)          min_drafts   how many a row waits for (m)
      hazards of the upstream edge, per position     window       how far upstream may run ahead (W)
      pace and restart time of upstream              max_drafts   how many a pass looks at
      core time of a draft, where cores are shared
                                                     relay        whether the neighbour passes drafts on unverified
      rows at hand                                   speculate    whether to use drafts at all
                                                     batch        who is in a pass, over how many drafts each

The objective is predicted tokens per second (`prediction.py`); a new decision replaces an old one only where it
promises `_BETTER` times as much. What is not in use is not measured, so it is tried from time to time (`Trial`):
drafting while alone, being alone where drafting hardly pays, relaying where the neighbour has an upstream of its own.
Trials that change nothing become rarer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from cascade_runtime.messages import Grant
from cascade_runtime.scheduling.achieved import Achieved
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.costs import Costs
from cascade_runtime.scheduling.drafts import ENOUGH, Drafts
from cascade_runtime.scheduling.policy import TRIAL_WINDOW, Decision, Picked, Policy
from cascade_runtime.scheduling.prediction import Conditions, alone, predict
from cascade_runtime.scheduling.scheduled_row import ScheduledRow
from cascade_runtime.scheduling.seats import Seats
from cascade_runtime.scheduling.trial import SHARE, Trial

_REPLAN = 32  # passes between two looks at the figures, less at the beginning
_BETTER = 1.03  # what another mode must promise to be taken
_FINER = 1.01  # and other figures of the same mode, or drafting over being alone
_WAITS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
_MOST = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_WINDOWS = (4, 6, 8, 12, 16, 24, 32, 48, 64)
_WORTH_A_WAIT = 0.99  # of the best rate
_SETTLED = 4  # passes after which a drafter that was told to stop has stopped
_AS_GOOD = 0.997  # of the best rate
_AT_FIRST = 1.5  # what a pass may cost more while drafts are not known
_FORGET = 0.9
_OTHER_ROWS = 1.5  # times as many or as few: figures are looked at
_OLD = 24.0  # blocks that what was known counts as when drafting is tried again


class Adaptive(Policy):
    """prior: the cost of a pass as profiled at the start. most: the largest window. can_relay: the neighbour has an
    upstream of its own. patient: False starts every pass at once, for the least time to the next token. cores: how many
    this stage and those below it share, 0 for none.
    """

    def __init__(
        self,
        prior: StepCost,
        *,
        most: int,
        first_wait: int = 2,
        sends: int = 1,
        can_relay: bool = False,
        patient: bool = True,
        cores: float = 0.0,
    ) -> None:
        super().__init__(min(first_wait, most), window=most, sends=sends)
        self.decision = Decision(min(first_wait, most), most, most, reason="nothing measured yet")
        self.costs, self._achieved = Costs(prior), Achieved()
        self._most, self._patient, self._cores, self._occupied = most, patient, cores, 1.0
        self._drafts = {False: Drafts(), True: Drafts()}  # by whether they were relayed
        self._trials = {"alone": Trial(_SETTLED + ENOUGH), "draft": Trial(64)}
        if can_relay:
            self._trials["relay"] = Trial(24, due=24)
        self._trying: str | None = None
        self._trial_began = self._planned = self._passes = self._since_switch = 0
        self._trial_row: int | None = None
        self._restart_s = self._rows = self._context = 0.0
        self._surprised = 0  # when something had changed
        self._looked_at = 0.0, 0.0
        self._lost_s = 0.0  # by this trial
        self._tried = 0  # blocks verified in this trial, and waits in vain once its drafter had spoken
        self._spoken = False
        self._other_way = False
        self._looked = 0
        self._pass_s = 0.0
        self._seated: tuple[Decision, Seats] | None = None

    # -- what the scheduler asks -------------------------------------------------------------------------------------

    @property
    def drafting(self) -> bool:
        """Whether drafts are wanted now, by decision or for a trial of being alone."""
        return self.decision.speculate and self._trying != "alone"

    @property
    def relaying(self) -> bool:
        """Whether the neighbour is to pass drafts on now: every other trial of drafting does what was not done last."""
        return self.decision.relay != (self._trying == "relay" or (self._trying == "draft" and self._other_way))

    def need(self, row: ScheduledRow) -> int:
        """Drafts to wait for: none where nobody drafts, or where every token counts at once. A row that tries drafts
        waits for one, as long as one takes no longer than a pass: those that come while it runs may be refused unseen.
        """
        if not self.drafting:
            quick = self._drafts[self.relaying].pace_s <= self._pass_s
            return 1 if quick and row.handle == self._trial_row else 0
        return self.decision.min_drafts if self._patient else 0

    def pick(self, ready: Sequence[ScheduledRow], others: Sequence[ScheduledRow]) -> Picked:
        """Those who are ready, and others for whom a seat in this pass is worth its price; or nobody, where waiting for
        some of the others brings more tokens per second. A prompt waits for nobody, and nothing does before rates
        are known.
        """
        self._rows = _FORGET * self._rows + (1 - _FORGET) * (len(ready) + len(others))
        self._choose_trial_row(ready, others)
        if not others or not self.drafting or not self._patient or not self.decision.tokens_per_s:
            return [(row, self.limit(row)) for row in ready]
        seats, there = self._seats(), [self._looks(row) for row in others]
        if not any(row.prompt_left for row in ready) and seats.wait(there, self.decision.min_drafts):
            return []
        joining = [row for row, drafts in zip(others, there, strict=True) if seats.joins(drafts)]
        return [(row, self.limit(row)) for row in (*ready, *joining)]

    def limit(self, row: ScheduledRow) -> int:
        """The most drafts a pass looks at."""
        if row.alone or not (self.drafting or row.handle == self._trial_row):
            return 0
        return self.decision.max_drafts if self.decision.tokens_per_s else self._first_look()

    def _first_look(self) -> int:
        """While nothing is known of drafts: as many as make a pass cost no more than `_AT_FIRST` of what the first one
        makes it.
        """
        rows, cost = max(1, round(self._rows)), self.costs.fit(True)
        dear = _AT_FIRST * cost.seconds(rows, rows + 1, rows * self._context)
        fits = [most for most in _MOST if cost.seconds(rows, rows * (1 + most), rows * self._context) <= dear]
        return min(max(fits, default=1), self._most)

    def _looks(self, row: ScheduledRow) -> int:
        return min(len(row.standing.hints), self.limit(row))

    def _seats(self) -> Seats:
        """As the last decision sees them."""
        if self._seated is None or self._seated[0] is not self.decision:
            drafts, held = self._drafts[self.relaying], self.decision
            meanwhile = int(self._pass_s / drafts.pace_s) if drafts.pace_s > 0 else held.window
            full = min(held.window, held.max_drafts, meanwhile)
            survival, fit = drafts.hazards.survival(self._most + 1), self.costs.fit(True)
            self._seated = held, Seats(survival, fit, held.tokens_per_s, full, drafts.pace_s, self._restart_s)
        return self._seated[1]

    def grant(self, row: ScheduledRow) -> Grant:
        """A window where drafting pays, none where it does not, and one for the row that tries it again."""
        if self.drafting:
            pass
        elif row.handle == self._trial_row:
            return Grant(min(TRIAL_WINDOW, self._most), relay=self.relaying)
        else:
            return Grant(0)
        return Grant(self.decision.window, max(1, self.decision.min_drafts), self.relaying)

    @property
    def _weight(self) -> float:
        """Of what is seen now: the few blocks of a trial count for more."""
        return 6.0 if self._trying in ("draft", "relay") else 1.0

    # -- what came of it ---------------------------------------------------------------------------------------------

    def observe_hints(self, pace_us: int, work_us: int = 0, *, relayed: bool) -> None:
        """Drafts came, made at this pace and for so much time of shared cores."""
        self._spoken = True
        if pace_us:
            self._drafts[relayed].came(pace_us * 1e-6, work_us * 1e-6, self._weight)

    def observe_silence(self, seconds: float) -> None:
        """A row waited so long for drafts, and none came: that is a pace, too."""
        silent = self._drafts[self.relaying]
        silent.came(seconds, silent.work_s)
        self._tried += self._spoken
        self._lost_s += seconds / max(1.0, self._rows)

    def observe_restart(self, seconds: float, drafts: int, pace_us: int) -> None:
        """After a refusal, the first `drafts` new ones took so long."""
        self._lost_s += seconds / max(1.0, self._rows)
        beyond = max(0.0, seconds - drafts * pace_us * 1e-6)
        self._restart_s = _FORGET * self._restart_s + (1 - _FORGET) * beyond

    def observe_settled(self, drafted: int, accepted: int, *, relayed: bool) -> None:
        """A row's drafts were looked at."""
        if self._drafts[relayed].hazards.observe(drafted, accepted, self._weight):
            self._surprised = self._passes
        self._tried += 1

    def observe_work(self, seconds: float, looked: int, tokens: int) -> None:
        """A pass took so much of shared cores, and what was drafted for it took some as well."""
        super().observe_work(seconds + looked * self._drafts[self.relaying].work_s, looked, tokens)

    def observe_pace(self, seconds: float, tokens: int) -> None:
        """A row grew by so many tokens within so many seconds: as many as were promised?"""
        super().observe_pace(seconds, tokens)
        held, rows = self.decision, self._looked_at[0]
        promised = held.tokens_per_s if self.drafting else held.tokens_per_s_alone
        steady = self._since_switch > _SETTLED and max(rows, self._rows) < _OTHER_ROWS * min(rows, self._rows)
        if promised and steady and self._trying != "draft":
            self._achieved.observe(self.drafting, tokens, promised * seconds / rows)

    def observe_pass(self, rows: int, tokens: int, context: int, seconds: float, work_s: float = 0.0) -> None:
        """A pass without prompts ran. Now and then the figures are looked at, and something else is tried."""
        self._since_switch += 1
        self._occupied = _FORGET * self._occupied + (1 - _FORGET) * work_s / seconds
        if self._trying == "draft":
            self._lost_s += seconds - self.costs.fit(False).seconds(rows, rows, context)
        settled = self.drafting or self._since_switch > _SETTLED
        if settled and self.costs.observe(self.drafting, rows, tokens, context, seconds):
            self._surprised = self._passes
        self._context = context / rows
        self._pass_s = _FORGET * self._pass_s + (1 - _FORGET) * seconds if self._pass_s else seconds
        self._passes += 1
        if self._trying is not None:
            enough = self._trying == "draft" and self._tried >= ENOUGH
            if enough or self._passes - self._trial_began >= self._trials[self._trying].passes:
                self._end_trial()
            return
        if self._moved():
            self._surprised, before = self._passes, self._looked_at[0]
            if before > self._rows:  # a restart waits behind other rows' drafts; where nobody waits none is measured
                self._restart_s *= self._rows / before
        if not self.costs.doubtful and self._passes - self._planned >= min(
            _REPLAN, max(2, self._planned - self._surprised)
        ):
            self._plan()
            self._begin_trial()

    def _moved(self) -> bool:
        """Whether there are other rows at hand, or drafts come at other times, than when figures were looked at."""
        rows, first_s = self._looked_at
        now = self._first_s()
        return max(rows, self._rows) > _OTHER_ROWS * min(rows, self._rows) or max(first_s, now) > 2 * min(first_s, now)

    def _first_s(self) -> float:
        """From a refusal until the first draft."""
        return self._restart_s + self._drafts[self.decision.relay].pace_s

    def passed(self) -> None:
        """A pass ran, with prompts or without: until something is decided, no pass is too few to look."""
        self._looked += 1
        if not self.decision.tokens_per_s and self._looked % (4 * ENOUGH) == 0:
            self._plan()

    # -- deciding ----------------------------------------------------------------------------------------------------

    def _conditions(self, relayed: bool) -> Conditions:
        drafts = self._drafts[relayed]
        survival = drafts.hazards.survival(self._most + 1)
        rows = max(1, round(self._rows))
        return Conditions(
            self.costs.fit(True),
            survival,
            drafts.pace_s,
            self._restart_s,
            rows,
            self._context,
            self._cores,
            drafts.work_s,
            self._occupied,
        )

    def _plan(self) -> None:
        self._planned, self._looked_at = self._passes, (self._rows, self._first_s())
        rows = max(1, round(self._rows))
        step_s = self.costs.fit(True).seconds(rows, rows, rows * self._context)
        candidates = [  # a drafter slower than the stage itself need not be known any better
            self._best(relayed)
            for relayed, drafts in self._drafts.items()
            if drafts.known(self._rows) or (drafts.pace_s > step_s and drafts.heard >= max(2 * ENOUGH, 2 * rows))
        ]
        if not candidates:
            return
        best = max(candidates, key=lambda decision: decision.tokens_per_s)
        at, held = self._conditions(best.relay), self.decision
        best = replace(best, tokens_per_s_alone=alone(replace(at, cost=self.costs.fit(False))))
        by_itself = best.tokens_per_s_alone * self._achieved.alone
        if predict(at, best.min_drafts, best.window, best.max_drafts).tokens_per_pass < _FINER:
            best = replace(best, speculate=False, reason="drafts come too late or are refused")
        elif best.tokens_per_s < by_itself * (_FINER if held.speculate else _BETTER):
            best = replace(best, speculate=False, reason="drafts bring less than decoding alone")
        self._adopt(best)

    def _best(self, relayed: bool) -> Decision:
        """The wait, the limit and the window that promise most; of those as good, the largest limit and the least
        window.
        """
        at, held = self._conditions(relayed), self.decision

        def rate(m: int, window: int, most: int) -> float:
            return predict(at, m, window, most).tokens_per_s

        m = held.min_drafts
        limits = [limit for limit in _MOST if m <= limit < self._most] + [self._most]
        rates = {limit: rate(m, self._most, limit) for limit in limits}
        most = max(limit for limit in limits if rates[limit] > _AS_GOOD * max(rates.values()))  # what piles up is used
        waits = {m: rate(m, self._most, most) for m in _WAITS if m <= most}
        enough = _WORTH_A_WAIT * max(waits.values())
        m = min(m for m in waits if waits[m] > enough)
        best = waits[m]
        near = rate(held.min_drafts, self._most, held.max_drafts) * _FINER > best
        if near and held.relay == relayed and held.min_drafts <= m:
            m, most = held.min_drafts, held.max_drafts
            best = rate(m, self._most, most)
        windows = [w for w in (*_WINDOWS, self._most) if m < w <= self._most]
        window = next((w for w in windows if rate(m, w, most) > _AS_GOOD * best), self._most)
        why = "most predicted tokens per second"
        pace_s, restart_s = at.pace_s, at.restart_s
        return Decision(m, window, most, True, relayed, why, best, pace_s=pace_s, restart_s=restart_s)

    def _adopt(self, new: Decision) -> None:
        held = self.decision
        if new.relay != held.relay and new.speculate and held.speculate and self._drafts[held.relay].known(self._rows):
            stay = replace(self._best(held.relay), tokens_per_s_alone=new.tokens_per_s_alone)
            new = new if new.tokens_per_s >= _BETTER * stay.tokens_per_s else stay
        if new.speculate != held.speculate:
            self._since_switch = 0
        self.decision = new

    # -- trying ------------------------------------------------------------------------------------------------------

    def _begin_trial(self) -> None:
        held = self.decision
        wanted = ["alone" if held.speculate else "draft"] + (["relay"] if held.speculate else [])
        calm = self._surprised + _REPLAN if self._surprised else 0  # nothing is tried again while something changes
        for name in wanted:
            trial = self._trials.get(name)
            if trial is None or self._trying is not None or self._passes < max(trial.due, calm if trial.ended else 0):
                continue
            lost = 1.0 - held.tokens_per_s_alone / held.tokens_per_s if name == "alone" and held.tokens_per_s else 0.0
            if trial.passes * lost > SHARE * (self._passes - trial.ended):
                continue
            self._trying, self._trial_began, self._since_switch = name, self._passes, 0
            self._tried, self._spoken, self._lost_s = 0, False, 0.0
            if name == "draft":
                self._drafts[self.relaying].hazards.fade(_OLD)
            self._other_way = "relay" in self._trials and not self._other_way

    def _end_trial(self) -> None:
        name, before = self._trying, self.decision
        assert name is not None
        untried = name == "draft" and self._trial_row is None  # nobody was there who could have drafted
        self._trying, self._trial_row, self._since_switch = None, None, 0
        self._plan()
        changed = (before.speculate, before.relay) != (self.decision.speculate, self.decision.relay)
        rows = max(1, round(self._rows))
        pass_s = self.costs.fit(False).seconds(rows, rows, rows * self._context)
        lost = self._lost_s / pass_s if name == "draft" and pass_s > 0 else math.inf
        self._trials[name].over(self._passes, changed=changed or untried, lost=lost)

    def _choose_trial_row(self, ready: Sequence[ScheduledRow], others: Sequence[ScheduledRow]) -> None:
        if self._trying != "draft" or any(row.handle == self._trial_row for row in (*ready, *others)):
            return
        long = [row for row in ready if row.expect_drafts and row.standing.room > 16]
        self._trial_row = long[0].handle if long else None
