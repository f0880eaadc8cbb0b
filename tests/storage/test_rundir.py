"""Every path of a run: receipts, the lock, files written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign.errors import PartialError, RunDirBusy, SpecError
from campaign.report.report import Report
from campaign.storage.frozen_values import freeze
from campaign.storage.packs import PackReader, PackWriter
from campaign.storage.receipts import Receipt, Receipts, parse
from campaign.storage.rundir import RunDir
from campaign.util.files import read_json, write_aside, write_json
from campaign.util.hashing import canonical_json, digest, file_digest


def receipt(key="k1", **changes):
    given = {"stage": "s", "dataset": "d", "variation": "nominal", "file": "/a\u2028b.root", "kind": "counts",
             "sha256": "0" * 64, "size": 3, "rows": 5, "events": 7, "notes": ("one", "two")}  # fmt: skip
    return Receipt(key, **{**given, **changes})


def read(path):
    return {r.key: r for r in Receipts(path)}


# Receipts -------------------------------------------------------------------------------------------------------------


def test_receipts_come_back(tmp_path):
    """What one run recorded the next one reads; the last word on a key counts."""
    log = Receipts(tmp_path / "r.jsonl")
    for made in (receipt("a"), receipt("b"), receipt("a", rows=9)):
        log.add(made)
    log.close()
    assert read(tmp_path / "r.jsonl") == {"a": receipt("a", rows=9), "b": receipt("b")}
    assert read(tmp_path / "nothing") == {}


def test_a_torn_last_line_is_passed_over_and_spoils_nothing(tmp_path):
    """Wherever a killed writer stopped, what was whole is read, and what is added later too."""
    path = tmp_path / "r.jsonl"
    log = Receipts(path)
    log.add(receipt("a"))
    log.add(receipt("b"))
    log.close()
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for cut in range(start, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert set(read(path)) == {"a"}
        again = Receipts(path)
        again.add(receipt("c"))
        again.close()
        assert set(read(path)) == {"a", "c"}


def test_an_altered_receipt_is_no_receipt(tmp_path):
    """A line whose text does not fit its check is passed over."""
    path = tmp_path / "r.jsonl"
    log = Receipts(path)
    log.add(receipt("a", size=3))
    log.close()
    assert ",3,5,7," in path.read_text()
    path.write_text(path.read_text().replace(",3,5,7,", ",4,5,7,") + "garbage\n\n{}\n")
    assert read(path) == {}


def test_a_receipt_is_on_its_way_when_it_is_added(tmp_path):
    """Another process sees a receipt at once: a killed run keeps what it has recorded."""
    log = Receipts(tmp_path / "r.jsonl")
    log.add(receipt("a"))
    assert set(read(tmp_path / "r.jsonl")) == {"a"}
    log.close()


def test_receipts_are_read_back_by_their_place(tmp_path):
    """What `append` returns, and what a scan tells, is where a line is found again, however long it is."""
    log = Receipts(tmp_path / "r.jsonl")
    many = [receipt(f"k{i}", notes=("x" * (i % 7) * 20_000,)) for i in range(40)]
    places = [log.add(r) for r in many]
    text = b"".join(r.line() for r in many)
    start = log.append(text)
    places += [start + text.index(r.line()) for r in many]
    assert [parse(line) for line in log.lines(places)] == many + many
    assert [parse(line) for line in log.lines(places[::-1])] == (many + many)[::-1]
    assert [at for at, _ in log.scan()] == places
    log.close()
    again = Receipts(tmp_path / "r.jsonl")
    at = again.add(receipt("z"))
    assert [parse(line) for line in again.lines([places[3], at])] == [many[3], receipt("z")]
    again.close()


# Packs ----------------------------------------------------------------------------------------------------------------


def test_partials_of_a_pack_come_back_and_are_checked(tmp_path):
    """Each is read by its offset and size; one that is cut, altered, missing or another's is refused by name."""
    run = RunDir(tmp_path)
    contents = [os.urandom(n) for n in (3, 0, 100_000)]
    with PackWriter(run) as pack:
        told = [pack.add(content) for content in contents]
        assert not run.pack(pack.name).exists()
    receipts = [
        receipt(str(i), sha256=sha, size=len(content), pack=pack.name, offset=at)
        for i, (content, (at, sha)) in enumerate(zip(contents, told, strict=True))
    ]
    with PackReader(run) as packs:
        assert [packs.read(r) for r in receipts] == contents
    path = run.pack(pack.name)
    whole = path.read_bytes()
    for spoilt in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole[1:] + b"x"):
        path.write_bytes(spoilt)
        with PackReader(run) as packs, pytest.raises(PartialError, match=f"{pack.name}.pack at 3: is not what was"):
            packs.read(receipts[2])
    path.unlink()
    with PackReader(run) as packs, pytest.raises(PartialError, match="cannot be read"):
        packs.read(receipts[0])


def test_a_pack_appears_whole_or_not_at_all(tmp_path):
    """After an exception there is no pack and nothing beside it; without partials neither."""
    run = RunDir(tmp_path)
    with pytest.raises(TypeError), PackWriter(run) as pack:
        deque(map(pack.add, (b"abc", "no bytes")))
    with PackWriter(run):
        pass
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_sweep_leaves_what_receipts_name(tmp_path):
    """Unfinished files and packs that no receipt names are removed; columns and named packs stay."""
    run = RunDir(tmp_path)
    with PackWriter(run) as named, PackWriter(run) as orphan:
        named.add(b"1")
        orphan.add(b"2")
    columns = run.columns("ab" * 32)
    columns.parent.mkdir(parents=True, exist_ok=True)
    columns.write_bytes(b"3")
    (columns.parent / ".torn").write_bytes(b"4")
    run.leaf("x").parent.mkdir()
    run.leaf("x").write_bytes(b"5")
    run.sweep({named.name})
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == {run.pack(named.name), columns}


# The lock -------------------------------------------------------------------------------------------------------------

OWN = """
import sys, time
from collections import deque
from pathlib import Path
from campaign.storage.rundir import RunDir
with RunDir(Path(sys.argv[1])).owned():
    print("owned", flush=True)
    time.sleep(600)
"""


def owner_process(folder):
    process = subprocess.Popen([sys.executable, "-c", OWN, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "owned\n"
    return process


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path):
    """While one process owns a run directory another is refused with its host and pid; after it is killed, not."""
    process = owner_process(tmp_path / "run")
    try:
        run = RunDir(tmp_path / "run")
        who = f"{socket.gethostname()} pid {process.pid}"
        assert run.owner() == who
        with pytest.raises(RunDirBusy, match=f"in use by {who}") as caught, run.owned():
            pass
        assert caught.value.exit_code == 2
        assert str(tmp_path / "run") in str(caught.value)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert run.owner() == ""
    with run.owned():
        assert str(os.getpid()) in (tmp_path / "run/lock").read_text()


def test_a_run_directory_is_owned_once_in_one_process_too(tmp_path):
    """Two runs of one process do not share a run directory; after the first the second may."""
    run = RunDir(tmp_path)
    with run.owned():
        with pytest.raises(RunDirBusy), RunDir(tmp_path).owned():
            pass
        assert run.owner()
    with run.owned():
        pass


def test_asking_who_the_owner_is_keeps_nobody_out(tmp_path):
    """Looking at the lock again and again never makes an owner-to-be fail."""
    run = RunDir(tmp_path)
    with run.owned():
        pass
    stop = threading.Event()

    def look():
        while not stop.is_set():
            run.owner()

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            with run.owned():
                pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_place_that_cannot_be_a_run_directory_is_refused(tmp_path):
    """A file in the way is an error of the request, with the path."""
    (tmp_path / "f").write_text("")
    for place in (tmp_path / "f", tmp_path / "f/run"):
        with pytest.raises(SpecError, match="cannot be used as a run directory"), RunDir(place).owned():
            pass


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    """Until the block ends the file is not there; after an exception nothing is, and an older one stays."""
    path = tmp_path / "deep/er/f.bin"
    with write_aside(path) as stream:
        stream.write(b"one")
        stream.flush()
        assert not path.exists()
    assert path.read_bytes() == b"one"
    with pytest.raises(TypeError), write_aside(path) as stream:
        stream.writelines([b"two", "no bytes"])
    assert path.read_bytes() == b"one"
    assert [p.name for p in path.parent.iterdir()] == ["f.bin"]


def test_files_are_for_whom_the_umask_says(tmp_path):
    """Files of a run have the mode the user's umask gives, so that colleagues can read what they may."""
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "f.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "f.json").stat().st_mode & 0o777 == 0o640


def test_writers_of_one_file_do_not_tear_it(tmp_path):
    """Many writers at once leave one of their files, whole."""
    path = tmp_path / "f.json"

    def write(i):
        for _ in range(20):
            write_json(path, {"i": [i] * 1000})

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    while any(t.is_alive() for t in threads):
        found = read_json(path)
        assert found is None or len(set(found["i"])) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_paths_stay_inside_the_run_directory(tmp_path):
    """Every path a run uses lies in its folder, one per thing."""
    run = RunDir(tmp_path)
    paths = [
        run.report, run.receipts, run.manifest, run.plan_file, run.job, run.late_job, run.servers, run.logs,
        run.request_stop, run.columns("abc"), run.pack("abc"), run.leaf("abc"), run.frozen("s", "v"),
        run.artefacts("s", "v"),
        run.output("s", "d", "v", "columns"),
        run.output("s", "d", "v", "histograms"), run.output("s", "d", "v", "counts"),
    ]  # fmt: skip
    assert len(set(paths)) == len(paths)
    assert all(Path(os.path.normpath(p)).is_relative_to(tmp_path) for p in paths)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=st.dictionaries(st.text(), values))
def test_equal_values_have_one_canonical_text(value):
    """The order of keys does not show, and the text says the value."""
    backwards = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(backwards)
    assert digest(value) == digest(backwards)
    assert json.loads(canonical_json(value)) == value


def test_what_has_no_canonical_text_is_refused():
    """NaN is equal to nothing, so it has no canonical form."""
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json([float("nan")])


def test_a_file_digest_is_that_of_its_bytes(tmp_path):
    """The digest of a file is SHA-256 of its content, however large."""
    text = os.urandom(3_000_001)
    (tmp_path / "f").write_bytes(text)
    assert file_digest(tmp_path / "f") == hashlib.sha256(text).hexdigest()


def test_what_is_no_json_mapping_reads_as_nothing(tmp_path):
    """A missing, torn or foreign file is no mapping."""
    for text in ("", "{", "[1]", "3"):
        (tmp_path / "f.json").write_text(text)
        assert read_json(tmp_path / "f.json") is None
    assert read_json(tmp_path / "nope.json") is None


def test_a_report_comes_back(tmp_path):
    """A saved report loads equal, also one with fields of a later version, and reads as text and HTML."""
    made = Report("c", str(tmp_path), status="complete", datasets={"d": {"files": 2, "events": 1234}}, warnings=["<b>"])
    made.outputs["s/d/nominal"] = {"path": "p", "kind": "counts", "sha256": "f" * 64}
    made.save()
    assert Report.load(tmp_path) == made
    assert made.exit_code == 0
    write_json(tmp_path / "report.json", {**dataclasses.asdict(made), "later": 1})
    assert Report.load(tmp_path) == made
    assert "1,234 events" in made.text()
    assert "&lt;b&gt;" in made._repr_html_()
    assert Report.load(tmp_path / "nope") is None


def test_whoever_may_read_a_run_directory_sees_its_owner(tmp_path):
    """A colleague, who may write nothing there; one who may not even look is told so, and not that nobody runs."""
    run = RunDir(tmp_path)
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    argv = [*bound, sys.executable, "-m", "campaign.cli", "status", str(tmp_path)]
    (tmp_path / "plan.json").write_text('{"plan": ""}')
    with run.owned():
        (tmp_path / "lock").chmod(0o444)
        told = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert f"running on {socket.gethostname()} pid {os.getpid()}" in told.stdout, told.stderr
        (tmp_path / "lock").chmod(0)
        told = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert told.returncode == 1
        assert "cannot find out whether a campaign runs there: Permission denied" in told.stderr


def test_what_is_durable_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """The content is synced before the file appears, and its name after: a power cut leaves all of it, or none."""
    path, seen, sync = tmp_path / "report.json", [], os.fsync

    def noted(fd):
        seen.append((Path(f"/proc/self/fd/{fd}").readlink(), path.exists(), os.fstat(fd).st_size))
        sync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    write_json(path, {"a": 1})
    assert seen == []
    path.unlink()
    write_json(path, {"a": 1}, durable=True)
    (aside, there, size), (folder, then, _) = seen
    assert aside.parent == tmp_path
    assert (aside != path, there, size) == (True, False, path.stat().st_size)
    assert (folder, then) == (tmp_path, True)


def test_what_says_that_a_run_is_complete_is_durable(tmp_path, monkeypatch):
    """The report, a frozen value, and the receipt of one."""
    synced, sync = [], os.fsync

    def noted(fd):
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        sync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    Report("c", str(tmp_path)).save()
    assert any("report.json" in name for name in synced)
    freeze({"a": 1}, tmp_path / "value")
    assert any("value" in name for name in synced)
    log = Receipts(tmp_path / "receipts.jsonl")
    log.add(receipt("a"))
    assert "receipts.jsonl" not in synced
    log.add(receipt("b"), durable=True)
    log.close()
    assert "receipts.jsonl" in synced
