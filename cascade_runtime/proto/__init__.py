"""The messages that cross a machine's border by gRPC: `*.proto`, and the code generated from them, committed beside.

After a change of a `.proto` file, from the repository's root:

    python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. cascade_runtime/proto/*.proto

`tests/test_proto.py` generates again and compares, so that the two never part.
"""
