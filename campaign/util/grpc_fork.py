"""Turns off gRPC's handlers of ``fork()`` in workers, unless the user wants them. Imported before gRPC.

They start threads in a child that is forked while a call is under way, and now and then the child aborts in them
(gRPC 1.85). A worker does not use gRPC in a child that a stage has forked. gRPC reads the variable when it is imported.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
