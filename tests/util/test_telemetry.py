"""onnxruntime leaves no file and sends no report from a campaign's processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from campaign import ServerPool
from campaign.spec.models import ServerSpec
from tests.conftest import PROJECT


@pytest.mark.parametrize("module", ["campaign.worker.process", "campaign.inference.local_model"])
def test_onnxruntime_is_quiet_where_a_campaign_imports_it(tmp_path, module):
    """Neither the temporary directory nor the home directory holds a file after the import."""
    folders = {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for folder in folders.values():
        Path(folder).mkdir()
    env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | folders
    subprocess.run([sys.executable, "-c", f"import {module}, onnxruntime"], env=env, check=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_servers_models_find_it_turned_off():
    """The environment of a server holds the variable."""
    spec = ServerSpec(model_repository=str(PROJECT / "tests" / "models"), models={"slow": {"batch": 8}})
    with ServerPool(spec) as pool:
        pool.wait_ready()
        (record,) = pool.records()
        environment = Path(f"/proc/{record.server_pid}/environ").read_bytes().split(b"\0")
        assert b"ORT_DISABLE_TELEMETRY=1" in environment
        assert pool.servers().infer("slow", {"X": np.zeros((1, 1), np.float32)})["Y"].shape == (1, 1)
