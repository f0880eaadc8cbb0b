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


WATCH = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_ENABLE_FORK_SUPPORT"))

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
assert "grpc" in sys.modules
"""


def run(code: str, given: str | None) -> subprocess.CompletedProcess[str]:
    """``code`` in a new process that imports what a worker imports, with the user's ``given`` setting."""
    env = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    env |= {"GRPC_ENABLE_FORK_SUPPORT": given} if given else {}
    command = [sys.executable, "-c", code, "campaign.worker.tasks"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize(("given", "seen"), [(None, "0"), ("1", "1")])
def test_grpc_finds_the_variable_when_a_worker_imports_it(given, seen):
    """What the variable says is decided when gRPC is imported; a user's own setting is kept."""
    assert run(WATCH, given).stdout.split() == [seen]


def test_a_worker_that_forks_during_a_call_is_left_alone_by_grpc():
    """The handlers, when on, write a line with "fork" to standard error in both processes."""
    assert "fork" not in run(CODE, None).stderr
