"""A user's own provider and server kind, by file beside the campaign: one file each, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import change, command, report_of, yaml_of

OWN = '''
from campaign.providers.local import LocalProvider
from campaign.servers.triton import Triton


class Mine(LocalProvider):
    """The local provider under another name, with a trace."""

    def tasks(self, workers):
        (self.folder / "mine").touch()
        return super().tasks(workers)


class Served(Triton):
    """Triton under another name, with a trace in its id."""

    @staticmethod
    def launch(recipe, place, name):
        launch = Triton.launch(recipe, place, name)
        return type(launch)([*launch.argv, "--id=served"], launch.env, launch.url, launch.shm_prefix)
'''


@pytest.mark.slow
def test_ones_own_provider_and_server_kind_by_file(small: Path) -> None:
    """`provider: own.py:Mine` and `servers.kind: own.py:Served` are used, in the driver and in the pilot."""
    (small / "own.py").write_text(OWN)
    servers = yaml_of(small)["servers"] | {"kind": "own.py:Served"}
    change(small, provider="own.py:Mine", servers=servers, variations={})
    done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (small / "r" / "logs" / "mine").exists()
    log = Path(report_of(small / "r")["servers"][0]["log"]).read_text()
    assert "served" in log
    change(small, provider="own.py:Yours")
    done = command("check", "c.yaml", cwd=small)
    assert done.returncode == 2
    assert "provider: 'Yours' is not one of the classes of own.py (known: Mine, Served)" in done.stderr
