"""An edge box beside the sensor and a core far away: what crosses between them, and what becomes of it when it breaks.

    sensor -> Ingest -> packing -> EdgeLedger  ~~ gRPC, proto/edge.proto ~~  CoreLedger -> unpacking -> pipeline
                newest windows     what is unanswered                        outcomes not yet taken

What crosses is a choice of cut (`cut.py`): raw events, rendered frames, features, or features and draft tokens (then
the recipe's lightest stage runs on the box, and `newest.py` holds what it and the core's next stage have to say to each
other). Everything here is without sockets, clocks and tasks; those are `cluster/edge/`. On the box only the cuts
"features" and "drafts" need torch.
"""
