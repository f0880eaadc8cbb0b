"""Runs inside worker processes: reads a range of rows, calls the stages, merges partials, runs reduce stages.

In: picklable tasks of `campaign.planning`. Out: partials and receipts in the run directory. The driver submits the
functions of `campaign.worker.tasks` to an executor.
"""

from campaign.util import grpc_fork, telemetry  # noqa: F401  first: before gRPC and onnxruntime are imported
