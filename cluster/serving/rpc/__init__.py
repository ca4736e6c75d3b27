"""The gRPC door of a server: cascade_runtime/proto/cascade.proto, in front of the same gateway as the HTTP routes.

    client -> GrpcServer (server.py) -> Door (door.py): key, malformed messages, errors as status
           -> CascadeService (service.py), answered_windows (session.py) -> Gateway -> the pipeline

    messages.py   requests as bodies for the one validator, answers and refusals as messages
    health.py     grpc.health.v1; reflection is gRPC's own

The server runs inside the replica, on a port of its own, and not behind Ray Serve's gRPC proxy. That proxy (2.60)
carries all four kinds of call, but it listens on every address of the machine and on no other choice, knows no TLS,
reads messages of up to 2 GB before anybody has asked for a key, and adds two hops through Ray to every message. Here
the address is the operator's, a key is asked for before a message is read, and health is the pipeline's own. The price:
Serve does not spread calls over replicas. Replicas on one machine share the port (the kernel spreads connections, and
each ends gracefully after a minute, so that a client is not bound to one of them for ever); those on other machines
have it there.
"""

from cluster.serving.rpc.server import GrpcServer

__all__ = ["GrpcServer"]
