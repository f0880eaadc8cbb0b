"""A worker that forks while a call is under way: gRPC's own handlers stay out of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import importlib, os, sys, time
from concurrent import futures
importlib.import_module(sys.argv[1])
import grpc

def slow(request, context):
    time.sleep(0.3)
    return b"answer"

class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(slow)

server = grpc.server(futures.ThreadPoolExecutor(1))
server.add_generic_rpc_handlers((Handler(),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
pending = grpc.insecure_channel(f"127.0.0.1:{port}").unary_unary("/a/b").future(b"")
time.sleep(0.1)
child = os.fork()
if child == 0:
    os._exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert pending.result() == b"answer"
server.stop(0)
"""


@pytest.mark.parametrize(("module", "given", "quiet"), [
    ("campaign.work", None, True), ("grpc", None, False), ("campaign.work", "1", False),
])  # fmt: skip
def test_grpcs_handlers_of_fork_are_off_in_a_worker(module, given, quiet):
    """What a worker imports turns them off, in time; gRPC alone has them on, and so has a user who asks for them."""
    env = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    env |= {"GRPC_ENABLE_FORK_SUPPORT": given} if given else {}
    done = subprocess.run([sys.executable, "-c", CODE, module], env=env, capture_output=True, text=True, check=True)
    assert ("fork" not in done.stderr) == quiet, done.stderr
