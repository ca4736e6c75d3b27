"""Emulated devices: real protocol, channels, scheduling and processes; timed waits in place of forward passes.

    device.py     EmulatedDevice: how long a pass takes; one at a time, also among processes that name the same device
    answers.py    recorded answers, read from a JSON file
    tokens.py     who says what: made up (`Agreement`), recorded, or an n-gram model of recorded answers
    level.py      EmulatedLevel: a language level, with the KV bookkeeping of a real one
    vision.py     EmulatedBranch, EmulatedVerifier: the event branch and the adapter/verifier
    loading.py    a recipe's stages, real or emulated: what engine and actors load

It is how a cascade for eight GPUs is exercised on two cores. A recipe asks for it: `device = "emulated"` in every
stage, and an [emulation] table for the tokens. Nothing is emulated by default; `Recipe.marks` stands in every result.
Tokens are a function of question, recording and seed, so that the engine, which does not wait, gives the same answers.
No accuracy, memory or contention inside a device can be learnt from it.
"""
