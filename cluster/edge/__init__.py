"""The two ends of the link between an edge box and the core, over gRPC (`proto/edge.proto`).

    sensor.py    the edge: a camera's windows, out of a pipe
    box.py       the edge: takes those or replays a recording, packs, keeps what is unanswered, connects again
    core.py      the core's server: who may speak, sessions that outlive connections, status
    session.py   one edge's standing question: batches into windows, windows into requests, outcomes back
    seeing.py    how a recipe looks at a window, which the edge is told
    pipeline.py  what answers the windows
    drafter.py   the edge: the lightest stage, where that drafts on the box
    session_drafts.py, exchange.py   the core: what edges draft, to the pipeline and back
    doors.py     TLS and tokens of both ends
    counters.py  what the core counts, for Prometheus
    latency.py   per stage, from the moment when the sensor closed the window

What passes is `cascade_runtime/edge/`.
"""

PORT = 8100  # of a core, unless somebody says another
