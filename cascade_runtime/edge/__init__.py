"""An edge box beside the sensor and a core far away: what crosses between them, and what becomes of it when it breaks.

    sensor -> Ingest -> packing -> EdgeLedger  ~~ gRPC, proto/edge.proto ~~  CoreLedger -> unpacking -> pipeline
                newest windows     what is unanswered                        outcomes not yet taken

What crosses is a choice of cut (`cut.py`): raw events, rendered frames, or features. Everything here is without
sockets, clocks and tasks; those are `cluster/edge/`. On the box only the cut "features" needs torch.
"""
