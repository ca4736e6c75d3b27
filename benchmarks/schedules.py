"""Two published schedules as closed forms, beside this runtime's own: what overlap brings, whoever arranges it.

    python -m benchmarks.schedules

A drafter whose token takes 1 / ratio and a target whose pass takes 1, on devices of their own; each draft is accepted
with the same chance, as in `benchmarks.simulator`. Speed over the target alone, nothing measured. One JSON line last.

PEARL (Liu et al., ICLR 2025) keeps drafter and target in step: a block is drafted while its first token is verified
(pre-verify), then the next one while the rest is (post-verify). Free-running stages that wait for nobody (PipeSpec;
m = 0, `Fixed(0)`) come within some percent of it, without a common step. DSI (Timor et al., ICLR 2025) gives the
drafter a pool of target servers, so that it never waits; its cost is their number.
"""

from __future__ import annotations

import json
import math

from benchmarks.simulator import TwoStages

SETTINGS = ((0.5, 5), (0.5, 20), (0.7, 5), (0.7, 10), (0.7, 20))
SERVERS = 4


def pearl(agreement: float, ratio: float, block: int) -> float:
    """PEARL's tokens per target pass, as the two-state chain of its algorithm 2; its own block is round(ratio).

    pre: the first draft is right, and the target's next pass is a post; or it is not, and the target's token stands.
    post: `block` drafts are judged; all right, and it stays; or the right ones and a correction stand, and it is pre.
    """
    all_right = agreement**block
    in_post = sum(n * agreement ** (n - 1) * (1 - agreement) for n in range(1, block + 1)) + block * all_right
    post = agreement / (agreement + 1 - all_right)  # the share of steps that are post
    step = max(block / ratio, 1.0)
    return ((1 - post) + post * in_post) / step


def dsi_lookahead(ratio: float, servers: int) -> int:
    """The least lookahead at which so many servers keep up with the drafter: ceil(ratio / lookahead) <= servers (eq. 1
    there).
    """
    return math.ceil(ratio / servers)


def dsi(agreement: float, ratio: float, servers: int) -> float:
    """DSI's speed. The draft after n right ones is known to be wrong one pass after the block of the n-th was drafted;
    with lookahead 1 this is the bound of its proposition 1.
    """
    lookahead = dsi_lookahead(ratio, servers)
    blocks = agreement / (1 - agreement**lookahead)  # of a run of right drafts, in expectation
    return 1 / (1 - agreement) / (blocks * lookahead / ratio + 1)


def main() -> None:
    """The table, and the JSON line last."""
    print(f"{'agreement, ratio':<18}{'in turn':>9}{'PEARL':>9}{'m = 0':>9}{f'DSI, {SERVERS}':>9}{'DSI, any':>9}")
    rows = []
    for agreement, ratio in SETTINGS:
        two = TwoStages(agreement, ratio)
        figures = {
            "in_turn": two.synchronous(),
            "pearl": pearl(agreement, ratio, round(ratio)),
            "free_running": two.asynchronous(0),
            "dsi": dsi(agreement, ratio, SERVERS),
            "dsi_any": dsi(agreement, ratio, round(ratio)),
        }
        print(f"{agreement:<9}{ratio:<9}" + "".join(f"{value:>9.2f}" for value in figures.values()), flush=True)
        rows.append({"agreement": agreement, "ratio": ratio} | {name: round(v, 3) for name, v in figures.items()})
    print(json.dumps({"servers": SERVERS, "rows": rows}))


if __name__ == "__main__":
    main()
