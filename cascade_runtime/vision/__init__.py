"""What the models see: typed feature packets (`features`), the gate (`gate`), the event branch and the dense tower.

event_branch       stage 1: a recording -> frames, event features
adapter_verifier   stage 2: event features -> the target's space, and the proof (`gate`) that they belong there
front_end          both, one after the other, for the one-process engine
online             an adapter that goes on learning
"""
