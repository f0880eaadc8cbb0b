"""Starts a server in a mount namespace with its own shared memory, and gives it its certificate.

    python -m campaign.pool.sandbox ORDER.json

Triton makes the shared memory of its Python backend readable by everybody, whatever the umask. So where the kernel lets
an unprivileged user have a mount namespace, the server gets a ``/dev/shm`` of its own: nobody else's process can name
what lies there, and it is gone with the last process of the server, however that ended. The server's key lies in such a
place too, so it is on no disk. Where the kernel does not, a watcher takes others' right to read as regions appear, and
the key lies in the server's private folder as long as the server runs; `unmounted` says so, for the pilot's record.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from campaign.supervision.identity import VARIABLE

if TYPE_CHECKING:
    from campaign.protocols import Launch

SHM = "/dev/shm"  # noqa: S108  Triton's place
_UNMOUNTED = "unmounted"
TLS = "tls"  # folder in a server's place: key.pem, cert.pem, ca.pem
_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_NOSUID, _NODEV, _REC, _PRIVATE = 2, 4, 16384, 1 << 18
_SET_PDEATHSIG, _GET_PDEATHSIG = 1, 2
_IN_CREATE, _IN_CLOEXEC = 0x100, 0o2000000


def command(launch: Launch, place: Path, folder: Path, name: str) -> tuple[list[str], dict[str, str]]:
    """Program and environment for starting a server in its enclosure.

    Args:
        launch: How the kind starts it.
        place: Its private folder.
        folder: The pool's folder.
        name: Its name.
    """
    order = {
        "argv": list(launch.argv), "env": {**_marked(), **launch.env}, "place": str(place), "shm": launch.private_shm,
        "prefix": launch.shm_prefix, "folder": str(folder), "name": name, "ca": launch.ca,
    }  # fmt: skip
    path = place / "order.json"
    path.touch(0o600)
    path.write_text(json.dumps(order))
    return [sys.executable, "-m", "campaign.pool.sandbox", str(path)], dict(os.environ)


def _marked() -> dict[str, str]:
    """By this a server is known for ours when its pilot is gone, whatever its kind keeps of the environment."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}


def main(argv: list[str]) -> NoReturn:
    """Entry point of ``python -m campaign.pool.sandbox``."""
    path = Path(argv[0])
    order = json.loads(path.read_text())
    path.unlink()
    parent, death = os.getppid(), ctypes.c_int(0)
    _libc().prctl(_GET_PDEATHSIG, ctypes.byref(death), 0, 0, 0)
    places = [SHM] + ([f"{order['place']}/{TLS}"] if order["ca"] else [])
    if order["ca"]:
        Path(places[1]).mkdir(0o700)
    _enclose(order, places)
    if order["ca"]:
        _get_certificate(order, Path(places[1]))
    # The kernel forgets it when credentials change; and who it was meant for may have gone meanwhile.
    _libc().prctl(_SET_PDEATHSIG, death.value, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("the pilot has gone")
    os.execve(order["argv"][0], order["argv"], order["env"])  # noqa: S606  a list, no shell


def _enclose(order: Mapping[str, Any], places: list[str]) -> None:
    wanted = places[1:] if order["shm"] is False else places
    try:
        own_mounts(wanted)
    except OSError as error:
        if order["shm"] is True:
            raise SystemExit(f"this node gives no private /dev/shm: {error}") from None
        print(f"no private /dev/shm on this node ({error}): it is the node's, closed as it is filled", flush=True)
        wanted = []
        if order["ca"]:
            Path(order["place"], _UNMOUNTED).touch(0o600)
    if SHM not in wanted:
        _watch(order["prefix"])


def unmounted(place: Path) -> bool:
    """True if the server's key is a file in its folder, and not in private memory."""
    return (place / _UNMOUNTED).exists()


def own_mounts(places: list[str]) -> None:
    """Give this process, and what it becomes, file systems of its own in memory; half of the node's memory at most.

    Raises:
        OSError: The kernel does not let this user.
    """
    if not places:
        return
    libc, uid, gid = _libc(), os.geteuid(), os.getegid()
    if libc.unshare(_NEWNS):  # root may as it is; anybody else in a namespace where his uid, as itself, may
        _call(libc.unshare(_NEWUSER | _NEWNS), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _call(libc.mount(b"none", b"/", None, ctypes.c_ulong(_REC | _PRIVATE), None), "mount --make-rprivate")
    for place in places:
        options = ctypes.c_char_p(b"mode=0700,size=50%")
        flags = ctypes.c_ulong(_NOSUID | _NODEV)
        _call(libc.mount(b"campaign", place.encode(), b"tmpfs", flags, options), f"mount {place}")


def _call(answer: int, what: str) -> None:
    if answer:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _watch(prefix: str) -> None:
    """A process beside the server that closes its regions as they appear in the node's ``/dev/shm``."""
    libc, server = _libc(), os.getpid()
    watch = libc.inotify_init1(_IN_CLOEXEC)
    if watch < 0 or libc.inotify_add_watch(watch, SHM.encode(), _IN_CREATE) < 0:
        return  # the pilot closes them once the server is ready
    if os.fork():
        os.close(watch)
        return
    libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a server that drains still has regions
    while os.getppid() == server:
        block, at = os.read(watch, 65536), 0
        while at < len(block):
            length = struct.unpack_from("iIII", block, at)[3]
            name = block[at + 16 : at + 16 + length].rstrip(b"\0").decode(errors="replace")
            if name.startswith(prefix):
                with suppress(OSError):
                    Path(SHM, name).chmod(0o600)
            at += 16 + length
    os._exit(0)


def _get_certificate(order: Mapping[str, Any], folder: Path) -> None:
    """Ask the driver for the server's certificate; the pilot ends this process if it need not wait any longer."""
    from campaign.pool.certificates import CertificateClient

    asked = CertificateClient(Path(order["folder"]), order["name"])
    asked.ask()
    while (found := asked.answer()) is None:
        time.sleep(0.02)
    for name, text in (("cert.pem", found[0]), ("key.pem", found[1]), ("ca.pem", order["ca"].encode())):
        fd = os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(fd, "wb") as stream:
            stream.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
