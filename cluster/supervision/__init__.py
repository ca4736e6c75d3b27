"""Who sees to it that every stage of a pipeline runs, and what happens when one does not.

    watch.py        decides: a pure state machine, events in, instructions out
    supervisor.py   acts: a thread that asks every stage for its pulse and does what the watch says
    ray_crew.py     how it acts where stages are Ray actors: kill, start, link, tell the controller

A stage that is dead (its actor or its loop) or hangs (no pulse, or no progress) is killed and started anew where it
was. The controller hears at once when it was last well, so that nobody who came later is blamed. Its links are opened
again under a higher epoch; the controller tells it of the requests inside: their features, which lie in the object
store, and the tokens that the target has confirmed. The answer is a function of the target model, the features and the
seed, so that it goes on token for token as if nothing had been.
"""
