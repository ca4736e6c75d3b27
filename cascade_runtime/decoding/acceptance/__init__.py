"""Which drafts a level keeps, and what it says instead: one rule a file.

    shared_noise          the draft is what the verifier chooses itself (the default; any schedule, any depth)
    ratio                 min(1, p / q), else the residual (Chen et al. 2023; Leviathan et al. 2023): the target's law
    fuzzy                 LOSSY  PyramidSD: where the two laws are close, the draft's
    speculative_cascade   LOSSY  Narasimhan et al. 2025: the drafter's law until a deferral rule calls the verifier
    typical               LOSSY  Medusa: whatever the verifier finds typical enough
    traversal             the ratio rule over a tree, leaf to root (Weng et al. 2025); `traverser.py` runs its rounds

All but the first weigh laws, so they need the drafter's beside its tokens, and rounds in which nobody runs ahead and no
draft is lost: the engine runs them (`engine.py`), pipelines do not (`config/drafting.py` says why). Each such rule is
one function, the law that may leave a level given the two that meet there (`rule.py`); `rejection.py` draws from it
with as many drafts kept as any method could keep.
"""
