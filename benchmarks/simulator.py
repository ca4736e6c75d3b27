"""Does the simulator tell the truth? Against published measurements, reference values, recorded traces and own runs.

    python -m benchmarks.simulator --pipespec          PipeSpec on 4 A100: what its asynchronous pipeline should reach
    python -m benchmarks.simulator --reference         two-stage values: simulator and prediction side by side
    python -m benchmarks.simulator --traces DIR        a 7B drafter and a 7B target on clips of 2-20 s, from recordings
    python -m benchmarks.simulator --validate FILE     runs of real processes (`cascade_runtime.simulation.measured`)

Each ends in one JSON line; nothing but simulated time is reported, so no hardware is named.

--pipespec. PipeSpec (arXiv 2505.01572) publishes ratios over autoregressive decoding (123.7 ms a token, HumanEval,
greedy, batch 1, 70B in 4 bits); its repository (BradMcDanel/pipespec, benchmark_results/humaneval) the times of single
passes. Taken from there: a step of the 1B model 11.1 ms, of the 8B model 22.6 ms; a pass of the 70B model over one
token 123.7 ms, over 8 tokens 427 ms, over 20 tokens 440 to 460 ms: with 4-bit weights more than one token takes another
kernel, and costs 3.4 steps. Agreements are not published. One per edge is fitted, each to one *synchronous* ratio: 8B
with 70B to 1.32, 1B with 70B to 1.46, 1B with 8B to 1.37 (three levels). Nothing is fitted to an asynchronous
measurement, so `async_2_level`, `async_3_level` and `discarded_share` are predictions. Residuals: see `RESIDUALS`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade_runtime.emulation.answers import RecordedAnswers
from cascade_runtime.emulation.tokens import NGramTokens, RecordedTokens
from cascade_runtime.scheduling.adaptive import Adaptive
from cascade_runtime.scheduling.cost import StepCost
from cascade_runtime.scheduling.hazards import geometric
from cascade_runtime.scheduling.policy import LockStep, Policy
from cascade_runtime.scheduling.prediction import Conditions, predict
from cascade_runtime.scheduling.scheduled_row import ScheduledRow
from cascade_runtime.simulation import Agreement, Load, Result, Stage, Tokens, read_measured_runs, simulate
from cascade_runtime.simulation.traces import read_hazards, read_stage_times, read_token_pairs

NEVER_S = 1e9


class Fixed(Policy):
    """At least m drafts, and as many as there are: what the reference values are of; m = 0 is PipeSpec."""

    def limit(self, row: ScheduledRow) -> int:
        """Everything."""
        return 0 if row.alone else 512


def four_bit(step_s: float, verify_s: float, per_token_s: float) -> StepCost:
    """4-bit weights: one token is a step; for more they are unpacked first, and n tokens take verify + n per_token."""
    return StepCost(step_s - per_token_s, per_token=per_token_s, several=verify_s - step_s + per_token_s)


def run(costs: Sequence[StepCost], policies: Sequence[Policy], tokens: Tokens, load: Load) -> Result:
    """Stages on devices of their own, links that cost nothing, nobody goes on without its drafter."""
    stages = [Stage(f"stage {k}", policy, cost) for k, (policy, cost) in enumerate(zip(policies, costs, strict=True))]
    return simulate(stages, tokens, load, upstream_s=NEVER_S, window=512, prefill_tokens=1 << 20)


# -- PipeSpec --------------------------------------------------------------------------------------------------------

STEP_1B, STEP_8B, STEP_70B = 0.0111, 0.0226, 0.1237
COST_1B, COST_8B = StepCost(STEP_1B), StepCost(STEP_8B)
COST_70B = four_bit(STEP_70B, 0.416, 0.0014)
LOOKAHEAD = 7  # drafts in a synchronous block: "8" there counts the verifier's own token
PUBLISHED = {
    "sync_3_level": 1.37,
    "sync_2_level": 1.46,
    "sync_2_level_8b": 1.32,
    "async_2_level": 2.27,
    "async_3_level": 2.54,
    "discarded_share": 0.79,
}
PIPESPEC_LOAD = Load(streams=1, requests=12, tokens=384)
RESIDUALS = """Residuals. The fitted agreements take the blame for what only the synchronous program loses: its prompt
(.6 s an answer), rounds lost because the drafter must guess the verifier's extra token itself, host time. Counted from
the accepted lengths published for one answer, 8B agrees with 70B in .96, not as fitted; with that the asynchronous
ratio is overtaken (last line): the measurement lies between. Refusals come in clusters, too, which independent drafts
do not. What is discarded rests on 1B with 70B alone, and is the cleanest of the predictions."""
COUNTED_8B = 0.962  # accepted over looked at, chain_Llama-3.1-8B..70B_8.json, answer 0: 328 of 341


def over_alone(result: Result) -> float:
    """Tokens per second over the 70B model alone."""
    return result.tokens_per_s * STEP_70B


def synchronous(drafters: Sequence[StepCost], agreement: Sequence[float]) -> float:
    """A block, then its verification. After an accepted block the drafter has to say the verifier's extra token too:
    8 steps for 7 drafts.
    """
    slow = (1 + LOOKAHEAD) / LOOKAHEAD
    costs = [StepCost(cost.base * (slow if k == 0 else 1)) for k, cost in enumerate(drafters)]
    policies = [LockStep(LOOKAHEAD if k else 0, LOOKAHEAD) for k in range(len(drafters) + 1)]
    return over_alone(run([*costs, COST_70B], policies, Agreement(agreement), PIPESPEC_LOAD))


def asynchronous(drafters: Sequence[StepCost], agreement: Sequence[float]) -> Result:
    """Everyone always runs: m = 0 at every stage, no window."""
    policies = [Fixed(0) for _ in range(len(drafters) + 1)]
    return run([*drafters, COST_70B], policies, Agreement(agreement), PIPESPEC_LOAD)


def fitted(ratio: Callable[[float], float], wanted: float) -> float:
    """The agreement at which a rising ratio is as wanted, to .001."""
    low, high = 0.5, 0.999
    while high - low > 0.001:
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) < wanted else (low, middle)
    return (low + high) / 2


def pipespec() -> dict[str, Any]:
    """Fit three agreements to the synchronous ratios, predict the asynchronous ones."""
    b8 = fitted(lambda a: synchronous([COST_8B], [a]), PUBLISHED["sync_2_level_8b"])
    b1 = fitted(lambda a: synchronous([COST_1B], [a]), PUBLISHED["sync_2_level"])
    b18 = fitted(lambda a: synchronous([COST_1B, COST_8B], [a, b8]), PUBLISHED["sync_3_level"])
    one = asynchronous([COST_1B], [b1])
    found = {
        "sync_3_level": synchronous([COST_1B, COST_8B], [b18, b8]),
        "sync_2_level": synchronous([COST_1B], [b1]),
        "sync_2_level_8b": synchronous([COST_8B], [b8]),
        "async_2_level": over_alone(asynchronous([COST_8B], [b8])),
        "async_3_level": over_alone(asynchronous([COST_1B, COST_8B], [b18, b8])),
        "discarded_share": 1 - one.tokens / one.drafted[0],
    }
    print(f"agreements fitted to the synchronous ratios: 8B-70B {b8:.3f}, 1B-70B {b1:.3f}, 1B-8B {b18:.3f}")
    print(f"{'':<18}{'published':>10}{'simulated':>10}{'residual':>10}")
    for name, value in found.items():
        kind = "fitted" if name.startswith("sync") else "predicted"
        print(f"{name:<18}{PUBLISHED[name]:>10.2f}{value:>10.2f}{value / PUBLISHED[name] - 1:>+10.1%}  {kind}")
    counted = over_alone(asynchronous([COST_8B], [COUNTED_8B]))
    print(RESIDUALS)
    print(f"async_2_level with the counted agreement of 8B and 70B, {COUNTED_8B}: {counted:.2f}")
    agreements = {"8b_70b": b8, "1b_70b": b1, "1b_8b": b18}
    return {**_rounded(found), "async_2_level_counted": round(counted, 3), "agreements": _rounded(agreements)}


# -- reference values ------------------------------------------------------------------------------------------------

# agreement, ratio: synchronous best, m = 0, best m, and that m; iid drafts, a verification costs one step
REFERENCE = {
    (0.5, 5): (1.25, 1.32, 1.37, 1),
    (0.5, 20): (1.63, 1.33, 1.64, 3),
    (0.7, 5): (1.58, 1.80, 1.87, 1),
    (0.7, 10): (1.98, 1.93, 2.16, 3),
    (0.7, 20): (2.36, 1.95, 2.42, 4),
    (0.8, 10): (2.47, 2.62, 2.84, 3),
    (0.8, 20): (3.10, 2.73, 3.33, 5),
    (0.9, 10): (3.43, 4.15, 4.31, 4),
    (0.9, 20): (4.69, 4.78, 5.49, 6),
}


@dataclass(frozen=True)
class TwoStages:
    """A target whose pass takes 1, a drafter whose token takes 1 / ratio, one stream. passes: of the target, about."""

    agreement: float
    ratio: float
    passes: int = 3000

    def _load(self) -> Load:
        tokens = round(self.passes / (1 - self.agreement) ** 0.8 / 1.5)
        return Load(streams=1, requests=max(1, tokens // 1000), tokens=1000)

    def _run(self, policies: Sequence[Policy]) -> float:
        costs = [StepCost(1 / self.ratio), StepCost(1.0)]
        return run(costs, policies, Agreement([self.agreement]), self._load()).tokens_per_s

    def asynchronous(self, m: int) -> float:
        """Drafting always overlaps verification; after a refusal the target waits for m drafts."""
        return self._run([Fixed(0), Fixed(m)])

    def synchronous(self) -> float:
        """The best block, near where the formula (1 - a^(g+1)) / ((1 - a)(g / c + 1)) says it is."""

        def formula(g: int) -> float:
            return (1 - self.agreement ** (g + 1)) / ((1 - self.agreement) * (g / self.ratio + 1))

        best = max(range(1, 40), key=formula)
        return self._run([LockStep(0, best), LockStep(best)])

    def predicted(self, m: int) -> float:
        """What the policy would expect."""
        at = Conditions(StepCost(1.0), geometric(self.agreement, 513), 1 / self.ratio)
        return predict(at, m, 512).tokens_per_s


def reference() -> dict[str, Any]:
    """Every value of the table, simulated and predicted."""
    print(f"{'':<16}{'sync':>15}{'m = 0':>24}{'best m':>26}")
    print(f"{'alpha':>5}{'c':>5}{'':>6}{'ref':>7}{'sim':>8}" + f"{'ref':>8}{'sim':>8}{'pred':>8}" * 2 + f"{'m':>4}")
    worst: dict[float, float] = {}
    for (agreement, ratio), (sync, zero, best, m) in REFERENCE.items():
        stages = TwoStages(agreement, ratio)
        found = stages.synchronous(), stages.asynchronous(0), stages.asynchronous(m)
        print(
            f"{agreement:>5}{ratio:>5}{'':>6}{sync:>7.2f}{found[0]:>8.2f}{zero:>8.2f}{found[1]:>8.2f}"
            f"{stages.predicted(0):>8.2f}{best:>8.2f}{found[2]:>8.2f}{stages.predicted(m):>8.2f}{m:>4}"
        )
        off = max(abs(value / given - 1) for value, given in zip(found, (sync, zero, best), strict=True))
        worst[ratio] = max(worst.get(ratio, 0.0), off)
    print(REFERENCE_NOTE)
    return {f"worst_c_{ratio}": round(off, 4) for ratio, off in sorted(worst.items())}


REFERENCE_NOTE = """The reference drafter starts anew the moment a token is refused, and its answers never end. Ours, a
device that is in the middle of a step, ends that step first, which costs up to 1 / c of a pass after a refusal: most at
c 5, and wherever the target then waits for m drafts. Each answer also begins with a pass without drafts and ends within
a block. The prediction knows neither, and is nearer to the reference."""


# -- recorded traces -------------------------------------------------------------------------------------------------

TARGET, DRAFTER, END = "videollava", "eventgpt", 2
MODES: dict[str, Callable[[StepCost], list[Policy]]] = {
    "lock step, 4": lambda cost: [LockStep(0, 4), LockStep(4)],
    "m 0": lambda cost: [Fixed(0), Fixed(0)],
    "m 4": lambda cost: [Fixed(0, 32), Fixed(4, 32)],
    "adaptive": lambda cost: [Policy(0), Adaptive(cost, most=32)],
}


def traces(folder: Path) -> dict[str, Any]:
    """His stage times, and drafts as they were recorded: hazards of four adapters, paired answers, an n-gram model."""
    times = read_stage_times(folder / "stage_latency_profile.json")
    hazards = read_hazards(folder / "acceptance_and_verify_cost.json")
    pairs = read_token_pairs(folder / "eventgpt_videollava_tokens_1100.json")
    answers = RecordedAnswers(END, (pairs.drafter, pairs.target), "recorded")
    tokens: dict[str, Tokens] = {name: Agreement([each.accepted]) for name, each in hazards.items()}
    tokens["paired answers"] = RecordedTokens(answers, range(len(pairs.target)), 0)
    ngram = NGramTokens(RecordedAnswers(END, ((), pairs.target), "recorded"), (4,), 0)
    tokens["4-gram"] = ngram
    verify = sum(each.verify_s for each in hazards.values()) / len(hazards)
    drafted = sum(each.drafted for each in hazards.values()) / len(hazards)
    print(f"verification of {drafted:.0f} drafts {1e3 * verify:.1f} ms; an answer of 50 tokens, one stream; tokens/s")
    print("of the decoding of a clip over the target alone, its prompt included, both models loaded and inputs ready")
    print(f"{'clip':<6}{'drafts':<16}" + "".join(f"{mode:>14}" for mode in MODES))
    out: dict[str, Any] = {}
    for clip, models in times.items():
        target, drafter = models[TARGET], models[DRAFTER]
        slope = (target.prefill_s - verify) / (target.prompt - drafted - 1)
        cost = four_bit(target.step_s, verify - slope * (drafted + 1), slope)
        per_token = drafter.prefill_s / target.prompt
        light = StepCost(drafter.step_s - per_token, per_token=per_token)
        load = Load(streams=1, requests=40, tokens=50, prompt=target.prompt)
        alone = run([light, cost], MODES["m 0"](cost), tokens["4-gram"], Load(1, 40, 50, target.prompt, False))
        for name, model in tokens.items():
            quick = StepCost(1e-4) if name == "4-gram" else light
            ratios = {
                mode: run([quick, cost], policies(cost), model, load).tokens_per_s / alone.tokens_per_s
                for mode, policies in MODES.items()
            }
            if clip in (next(iter(times)), "20s"):
                print(f"{clip:<6}{name:<16}" + "".join(f"{ratio:>14.2f}" for ratio in ratios.values()))
            out[f"{clip} {name}"] = _rounded(ratios)
    worst = min(ratios["adaptive"] for ratios in out.values())
    print(TRACES_NOTE)
    return {"least_adaptive": worst, "most_adaptive": max(r["adaptive"] for r in out.values()), "ratios": out}


TRACES_NOTE = """A verification costs 4.6 steps here (4-bit weights), so drafts pay only where five or more are accepted
at once: a policy that may leave drafts alone matters more than any m."""


# -- own runs --------------------------------------------------------------------------------------------------------


def validate(path: Path) -> dict[str, Any]:
    """Every run of a file again in virtual time."""
    runs = read_measured_runs(path)
    print(f"{'run':<28}{'streams':>8}{'measured':>10}{'simulated':>10}{'off':>8}  tokens/s")
    off: list[float] = []
    for each in runs:
        simulated = each.simulated().tokens_per_s
        off.append(simulated / each.tokens_per_s - 1)
        label = each.name or each.policy.mode
        print(f"{label[:27]:<28}{each.streams:>8}{each.tokens_per_s:>10.1f}{simulated:>10.1f}{off[-1]:>+8.1%}")
    within = sum(abs(each) <= 0.05 for each in off)
    return {"runs": len(off), "within_5_percent": within, "worst": round(max(off, key=abs), 4)}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items() if math.isfinite(value)}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--pipespec", action="store_true")
    asked.add_argument("--reference", action="store_true")
    asked.add_argument("--traces", type=Path, metavar="DIR")
    asked.add_argument("--validate", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.pipespec:
        result = pipespec()
    elif args.reference:
        result = reference()
    elif args.traces is not None:
        result = traces(args.traces)
    else:
        result = validate(args.validate)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
