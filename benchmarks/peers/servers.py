"""The servers everybody is measured against: started by our own pool, but on TCP ports, which every client can call.

`TcpTriton` is a server kind of one's own, as a user would write one; `envoy` puts several servers behind one address.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from campaign.pool.pool import ServerPool
from campaign.protocols import Launch
from campaign.servers.triton import Triton
from campaign.spec.models import ServerSpec
from campaign.supervision.linux import die_with_parent

MODELS = Path(__file__).resolve().parent / "models"


class TcpTriton(Triton):
    """Triton on a free port of this machine."""

    @staticmethod
    def launch(recipe: Mapping[str, Any], place: Path, name: str) -> Launch:
        """As the socket's server, but for the address."""
        usual, port = Triton.launch(recipe, place, name), free_port()
        argv = [a for a in usual.argv if not a.startswith("--grpc-")]
        argv += ["--grpc-address=127.0.0.1", f"--grpc-port={port}"]
        return dataclasses.replace(usual, argv=argv, url=f"127.0.0.1:{port}")


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def tritons(model: str, count: int) -> Iterator[list[str]]:
    """``count`` servers of one model, proved by its known answer; their addresses, ``host:port``."""
    spec = ServerSpec.model_validate(
        {"kind": f"{__file__}:TcpTriton", "model_repository": str(MODELS), "models": [model], "count": count}
    )
    with ServerPool(spec) as pool:
        pool.wait_ready()
        yield [str(record.url) for record in pool.records()]


@contextlib.contextmanager
def envoy(python: Path, urls: Sequence[str]) -> Iterator[str]:
    """Envoy in front of servers, requests to the one with the fewest under way; its address."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="campaign-peers-") as place:
        path = Path(place) / "envoy.json"
        path.write_text(json.dumps(_config(port, urls)))
        argv = [str(python.parent / "envoy"), "-c", str(path), "--disable-hot-restart", "--concurrency", "1"]
        with subprocess.Popen(
            [*argv, "--log-level", "error"], preexec_fn=lambda: die_with_parent(signal.SIGKILL)
        ) as process:
            try:
                _wait_for(port, process)
                yield f"127.0.0.1:{port}"
            finally:
                process.kill()


def _wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"Envoy does not listen on {port} (exit code {process.poll()})")


_TYPE = "type.googleapis.com/envoy.extensions"


def _config(port: int, urls: Sequence[str]) -> dict[str, Any]:
    route = {"cluster": "tritons", "timeout": "0s"}
    manager = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "codec_type": "HTTP2",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"],
                                            "routes": [{"match": {"prefix": "/"}, "route": route}]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"}}],
    }  # fmt: skip
    options = {"@type": f"{_TYPE}.upstreams.http.v3.HttpProtocolOptions",
               "explicit_http_config": {"http2_protocol_options": {}}}  # fmt: skip
    servers = [{"endpoint": {"address": _address(*url.rsplit(":", 1))}} for url in urls]
    cluster = {
        "name": "tritons",
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "load_assignment": {"cluster_name": "tritons", "endpoints": [{"lb_endpoints": servers}]},
    }
    listener = {
        "address": _address("127.0.0.1", port),
        "filter_chains": [{"filters": [{"name": "front", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(host: str, port: str | int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": int(port)}}
