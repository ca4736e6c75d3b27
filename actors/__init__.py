"""The stages of the pipeline as plain classes; `cluster` makes Ray actors of them.

recording -> EventEncoderStage -> AdapterVerifierStage -+-> Drafter <-> MidVerifier <-> Target -> answer
                  frames, event features    aligned      |      draft blocks ->   <- verdicts
                                                         +-> dense features, for the target
EdgeRelay: in the drafter's place, where that runs on edge boxes.
Controller: admits requests to the stages and hands out answers; nothing passes through it per round.
"""
