"""Distillation for acceptance: a drafter learns what its verifier will say (`cascade train distil`).

config.py        how much of what                        divergences.py   FKL, RKL, JSD, TVD
run.py           one run from names to a checkpoint       selection.py     which tokens count (AdaSPEC, SpecKD), weights
lessons.py       clips, answers, teachers' states         objectives.py    the methods, each as a loss of one batch
speak.py         a cascade answers about clips            states.py        a model's states over packed lessons
teach.py         the loop, resumable                      whole.py         checkpoints, whole or not at all
"""
