"""The stages of the pipeline as plain classes; `cluster` makes Ray actors of them.

recording -> EventEncoderStage -> AdapterVerifierStage -+-> Drafter <-> MidVerifier <-> Target -> answer
                  frames, event features    aligned      |      draft blocks ->   <- verdicts
                                                         +-> dense features, for the target
EdgeRelay: in the drafter's place, where that runs on edge boxes.
Controller: admits requests to the stages and hands out answers; nothing passes through it per round.

    the stages     encoder.py, adapter.py; drafter.py, mid_verifier.py, target.py: each the loop of stage.py, which
                   is a stage_loop.py, as edge_relay.py is; stage_kind.py: which of them a name in a recipe is
    in the loop    passes.py computes, rows.py: what is inside; neighbour.py: the stage next door, links.py: how it is
                   reached (host.py: on which machine), heap.py; commands.py, bell.py: how other threads reach the loop
    the front      controller.py; course.py: one request's way, ending.py: its end, quarantine.py: who may not enter
                   again, incarnations.py: who is there, handles.py: how stages are reached
    what is said   facts.py, pulse.py
"""
