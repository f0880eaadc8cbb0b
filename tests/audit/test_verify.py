"""`campaign verify`: whatever byte of a finished run, or of what it was made from, is flipped, it is named."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import uproot
import yaml

import campaign
from campaign import cli
from campaign.audit.integrity import Finding
from campaign.audit.verify import Verification
from campaign.driver import manifest, run, summary
from campaign.driver.check import check
from campaign.errors import RunDirBusy
from campaign.planning.datasets import Files
from campaign.storage.receipts import Receipt, Receipts
from campaign.storage.rundir import RunDir
from campaign.util.files import read_json
from tests.conftest import PROJECT, campaign_dict, command, make_small, start, wait_until

FLIPS = max(2, int(os.environ.get("CAMPAIGN_FUZZ_EXAMPLES", "0")) // 15)  # of each file; more find more

HELPERS = """
def cut(y):
    return y > -1  # what is kept
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A complete run under ``one``, whose model, stages and helper are its own."""
    folder = make_small(tmp_path_factory.mktemp("verify"))
    shutil.copytree(PROJECT / "tests/models/batch_sensitive", folder / "models/batch_sensitive")
    (folder / "helpers_of_verify.py").write_text(HELPERS)
    text = (folder / "stages.py").read_text().replace("batch[batch.y > -1]", "batch[cut(batch.y)]")
    (folder / "stages.py").write_text("from helpers_of_verify import cut\n" + text)
    made = campaign_dict()
    made["servers"]["model_repository"] = "models"
    (folder / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    done = command("run", "c.yaml", "--run-dir", "one", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def copy(place, tmp_path):
    """Its run directory, to be spoilt."""
    return Path(shutil.copytree(place / "one", tmp_path / "copy"))


def flip(path: Path, at: int) -> None:
    """Flip a bit of one byte; the date stays."""
    stat, mode = path.stat(), path.stat().st_mode
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def look(run_dir: Path, sample: float = 0.0) -> Verification:
    return campaign.verify(None, run_dir, sample=sample)


def found(made: Verification, what: str, name: str) -> list[Finding]:
    return [f for f in made.findings if f.what == what and name in f.name + f.said]


def test_an_untouched_run_is_as_it_was(place, copy):
    """Nothing differs: in the directory itself, where outputs are links to partials, and in a copy without links."""
    for run_dir in (place / "one", copy):
        made = look(run_dir)
        assert made.findings == []
        assert made.exit_code == 0
        assert made.checked["partials"] == 46
        assert not any("not verified" in note for note in made.notes)


def state(run_dir: Path) -> list[tuple[Path, int, int, str]]:
    """Every file with its date, its inode and its bytes."""
    files = sorted(p for p in run_dir.rglob("*") if p.is_file())
    return [(p, p.stat().st_mtime_ns, p.stat().st_ino, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


def test_nothing_in_the_run_directory_is_changed(counted):
    """Verifying, with all recomputed, leaves every file with its bytes, its date and its inode."""
    before = state(counted / "r")
    made = look(counted / "r", sample=100.0)
    assert made.findings == []
    assert (made.checked["partials held against them"], made.checked["inputs by content"]) == (6, 3)
    assert state(counted / "r") == before


@pytest.mark.slow
def test_nothing_in_the_run_directory_is_changed_where_servers_answer(place):
    """The same where a server is started to recompute."""
    before = state(place / "one")
    done = command("verify", "one", "--sample", "100 %", "--json", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["findings"] == []
    assert told["checked"]["partials held against them"] == 46
    assert told["checked"]["inputs by content"] == 5
    assert state(place / "one") == before


IN_THE_RUN = {
    "outputs/first/mc/nominal.hists.npz": "output",
    "outputs/first/mc/tree_up.root": "output",
    "outputs/predict/data/nominal/000001.parquet": "output",
    "outputs/second/mc/weight_up.json": "output",
    "outputs/second/mc/nominal.exact.json": "output",
    "artefacts/mean/branch_up/note.txt": "artefact",
    "frozen/mean/nominal.json": "frozen",
    "partials/*/*.pack": "partial",
    "partials/*/*.parquet": "partial",
    "receipts.jsonl": "receipt",
    "plan.json": "plan",
    "manifest.json": "manifest",
}


@pytest.mark.parametrize("pattern", IN_THE_RUN)
def test_a_flipped_byte_in_the_run_directory_is_named(copy, pattern):
    """Wherever in a file one bit is flipped, the file is named, and it is the only kind of thing that is."""
    rng = random.Random(pattern)
    for path in sorted(copy.glob(pattern))[:2]:
        whole, what = path.read_bytes(), IN_THE_RUN[pattern]
        for _ in range(FLIPS):
            at = rng.randrange(len(whole))
            flip(path, at)
            made = look(copy)
            name = str(path.relative_to(copy))
            assert made.exit_code == 1, at
            assert found(made, what, name), (at, made.findings)
            others = {f.what for f in made.findings} - {what}
            assert others <= ({"output"} if what == "receipt" else set()), made.findings
            flip(path, at)
        assert path.read_bytes() == whole
    assert look(copy).exit_code == 0


@pytest.mark.parametrize("pattern", [p for p in IN_THE_RUN if p != "manifest.json"])
def test_a_missing_file_is_named(copy, pattern):
    """A file that is gone is named as one that differs is."""
    path = sorted(copy.glob(pattern))[0]
    path.unlink()
    made = look(copy)
    assert found(made, IN_THE_RUN[pattern], str(path.relative_to(copy)).removesuffix("/000001.parquet")), made.findings


def test_a_receipt_is_named_by_its_line(copy):
    """One bit in the tenth line of the log: that line is named."""
    lines = (copy / "receipts.jsonl").read_bytes().splitlines(keepends=True)
    flip(copy / "receipts.jsonl", sum(map(len, lines[:9])) + 40)
    assert found(look(copy), "receipt", "receipts.jsonl line 10")


@pytest.mark.parametrize(
    ("name", "what", "said"),
    [
        ("models/batch_sensitive/1/model.py", "model", "batch_sensitive"),
        ("models/batch_sensitive/configs/embedded.pbtxt", "model", "batch_sensitive"),
        ("stages.py", "stage", "stages.py"),
        ("helpers_of_verify.py", "stage", "helpers_of_verify.py"),
        ("data/mc/mc_2.root", "input", "mc_2.root"),
    ],
)
def test_a_flipped_byte_in_what_it_was_made_from_is_named(place, name, what, said):
    """Model, configuration, stage, helper and an input of the sample: the file that differs is named."""
    path = place / name
    whole, rng = path.read_bytes(), random.Random(name)
    places = [rng.randrange(len(whole)) for _ in range(FLIPS)]
    if name.endswith("pbtxt"):  # only within a value that answers depend on: with another space the model is the same
        values = re.compile(rb'(?:[:\[] )"?(\w+)').finditer(whole, whole.index(b"backend"), whole.index(b"instance_"))
        places = [rng.choice(range(*m.span(1))) for m in values]
        assert len(places) == 8
    try:
        for at in places:
            flip(path, at)
            made = look(place / "one", sample=0) if what != "input" else _inputs_only(place / "one")
            assert found(made, what, said) or found(made, "campaign", "cannot be made again"), (at, made.findings)
            flip(path, at)
    finally:
        stat = path.stat()
        path.write_bytes(whole)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert look(place / "one").exit_code == 0


def _inputs_only(run_dir: Path) -> Verification:
    """All inputs by content; the tasks are not done again, since a frozen value is said to be another."""
    from campaign.audit import verify
    from campaign.spec import yaml_file

    told = manifest.read(RunDir(run_dir))
    made = Verification(str(run_dir))
    checked = check(yaml_file.loads(told["recipe"]["yaml"], Path(told["recipe"]["base"]), ""))
    verify._identity(RunDir(run_dir), checked, told, 100.0, made)
    return made


def test_an_input_is_named_by_size_or_date(place):
    """A touched input is named, with the word that its content is the same; a missing one is named too."""
    path = place / "data/mc/mc_0.root"
    stat = path.stat()
    try:
        os.utime(path, ns=(1, 1))
        assert found(look(place / "one"), "input", "mc_0.root")[0].said == "date changed; its content did not"
        path.rename(place / "away")
        assert found(look(place / "one"), "input", "mc_0.root")[0].said == "is missing"
    finally:
        if not path.exists():
            (place / "away").rename(path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_an_input_is_named_by_its_metadata(counted):
    """A side file that gives a file another number is a change of that file, though its bytes are the same."""
    side = counted / "side.yaml"
    text = side.read_text()
    assert look(counted / "r").findings == []
    try:
        side.write_text(text.replace("lumi: 1", "lumi: 7"))
        made = look(counted / "r")
    finally:
        side.write_text(text)
    assert [(f.what, f.name, f.said) for f in made.findings] == [
        ("input", str(counted / "d/1.root"), "metadata changed")
    ]


def test_a_plan_that_differs_is_never_as_it_was(counted, tmp_path):
    """Where nothing has a name for what differs, that the plan does is said; nor is an unreadable plan passed over."""
    copy = Path(shutil.copytree(counted / "r", tmp_path / "r"))
    seal(copy / "manifest.json", lambda told: told.update(plan="0" * 64))
    assert found(look(copy), "campaign", "the plan has changed")
    (copy / "plan.json").write_text((copy / "plan.json").read_text()[:-40])
    sha256 = hashlib.sha256((copy / "plan.json").read_bytes()).hexdigest()
    seal(copy / "manifest.json", lambda told: told.update({"plan.json": sha256}))
    assert found(look(copy), "plan", "cannot be read")


def test_partials_of_earlier_plans_are_left_aside(counted, tmp_path):
    """What an abandoned plan has left may be gone: it is no part of this result, and a note counts it."""
    copy = Path(shutil.copytree(counted / "r", tmp_path / "r"))
    with Receipts(copy / "receipts.jsonl") as log:
        log.add(Receipt("ab" * 32, "count", "d", "nominal", "/x.root", "counts", "0" * 64, 9, pack="cd" * 12))
    content = (copy / "receipts.jsonl").read_bytes()
    told = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    seal(copy / "manifest.json", lambda whole: whole.update(receipts=told))
    made = look(copy)
    assert made.findings == []
    assert made.checked["partials"] == 6
    assert "1 receipts are of earlier plans: what they name is not of this result" in made.notes


def test_hashes_of_inputs_are_few_and_not_waited_for(counted, tmp_path, monkeypatch):
    """One per cent has a limit in bytes; and a run that is asked to stop when only a hash is missing ends complete."""
    files = Files((f"/{i:04}.root", 1 << 30, "1", "{}") for i in range(10_000))
    chosen = manifest.to_hash(SimpleNamespace(files={"d": files}, events=[], digest="x"))
    assert len(chosen) == manifest.MOST_PERCENT_BYTES >> 30
    slow, within, digest = threading.Event(), threading.Event(), manifest.file_digest

    def file_digest(path):
        if threading.current_thread().name == "campaign-inputs":
            within.set()
            slow.wait()
        return digest(path)

    def profiled(*args):
        within.wait()
        (tmp_path / "r/stop").touch()
        return summary.profiled(*args)

    monkeypatch.setattr(manifest, "file_digest", file_digest)
    monkeypatch.setattr(run, "summary", SimpleNamespace(**{**vars(summary), "profiled": profiled}))
    try:
        made = campaign.run(campaign.load(counted / "c.yaml"), run_dir=tmp_path / "r", progress=False)
    finally:
        slow.set()
    assert made.status == "complete"
    assert manifest.read(RunDir(tmp_path / "r"))["inputs"]["hashed"] == {}


@pytest.mark.faults
def test_a_verification_that_is_killed_leaves_no_folder(place):
    """Its temporary folder says whose it is, and goes with it."""
    before = set(Path(tempfile.gettempdir()).glob("campaign-verify-*"))

    def folders():
        return set(Path(tempfile.gettempdir()).glob("campaign-verify-*")) - before

    process = start("verify", "one", "--sample", "100 %", cwd=place)
    try:
        wait_until(lambda: any(read_json(f / "again/plan.json") for f in folders()), 60)
        assert all(read_json(f / "owner.json") for f in folders())
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: not folders(), 20)
    assert not folders()


def seal(path: Path, change) -> None:
    """Change a manifest and seal it again, as only a forger would."""
    told = manifest.read(RunDir(path.parent))
    change(told)
    text = json.dumps(told, indent=1).removesuffix("\n}")
    path.write_text(f'{text},\n "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n')


@pytest.mark.slow
def test_what_no_hash_covers_the_recomputation_finds(place, copy):
    """An input of which no content hash was taken, flipped under its old size and date: its task differs, by name."""
    seal(copy / "manifest.json", lambda told: told["inputs"].update(hashed={}))
    path = place / "data/data/data_1.root"
    whole, stat = path.read_bytes(), path.stat()
    with uproot.open(path) as file:  # in the middle of the compressed values of the branch that is inferred
        branch = file["events"]["x"]
        at = int(branch.member("fBasketSeek")[0] + branch.member("fBasketBytes")[0] // 2)
    try:
        flip(path, at)
        made = look(copy, sample=100.0)
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert made.exit_code == 1
    assert found(made, "recomputed", "data_1.root"), made.findings
    assert not found(made, "recomputed", "mc_"), made.findings
    assert "of 5 inputs of the sample the run has taken no content hash; they are recomputed" in made.notes


def test_versions_that_differ_are_a_likely_cause(copy):
    """Another version than the manifest's is told, and alone is no difference."""
    seal(copy / "manifest.json", lambda told: told["versions"].update(numpy="1.0"))
    made = look(copy)
    assert made.exit_code == 0
    assert any("and was 1.0: a likely cause" in note for note in made.notes)


@pytest.mark.slow
def test_a_frozen_value_that_differs_is_not_built_upon(copy):
    """It is named, and the tasks that need it are left out of what is done again."""
    flip(copy / "frozen/mean/nominal.json", 10)
    made = look(copy, sample=1.0)
    assert {f.what for f in made.findings} == {"frozen"}
    assert 0 < made.checked["partials held against them"] < 17


def test_what_cannot_be_verified_is_said(place, copy, capsys):
    """No manifest: exit 2, with what to do; a run that goes on is left alone; an unknown sample is refused."""
    (copy / "manifest.json").unlink()
    assert cli.main(["verify", str(copy)]) == 2
    said = capsys.readouterr().err
    assert "there is no manifest" in said
    assert "run the campaign to its end" in said
    with RunDir(copy).owned(), pytest.raises(RunDirBusy):
        look(copy)
    assert cli.main(["verify", str(place / "nowhere")]) == 2
    with pytest.raises(SystemExit, match="2"):
        cli.main(["verify", str(place / "one"), "--sample", "200 %"])


def test_a_campaign_of_python_objects_is_verified_from_its_script(place, tmp_path):
    """Its manifest says that it cannot hold it, and what to call; with the campaign all is verified."""
    given = campaign.load(place / "c.yaml")
    rundir = RunDir(tmp_path / "r")
    shutil.copytree(place / "one", rundir.root)
    seal(rundir.manifest, lambda told: told.update(recipe={"why_not": "a Python object"}))
    made = look(rundir.root)
    assert made.exit_code == 0
    assert "call campaign.verify(campaign, run_dir)" in made.notes[0]
    assert campaign.verify(given, rundir.root, sample=0).notes == []


def test_a_manifest_holds_no_secret(place):
    """Headers that are written out, and options of providers, are not in it; variables' names are."""
    given = campaign.load(place / "c.yaml")
    attach = {"kind": "attach", "urls": ["h:1"], "models": ["batch_sensitive"], "headers": {"k": "s3cret"}}
    data = {**campaign_dict(), "servers": attach, "provider": {"kind": "parsl", "provider": {"worker_init": "s3cret"}}}
    made = campaign.Campaign.model_validate(data).at(given.base)
    assert "yaml" not in manifest.recipe(made)
    assert "s3cret" not in json.dumps(manifest.recipe(made))
    attach["headers"] = {"k": "$KEY"}
    made = campaign.Campaign.model_validate(data).at(given.base)
    assert "$KEY" in manifest.recipe(made)["yaml"]
    assert "s3cret" not in json.dumps(manifest.recipe(made))


def test_the_sample_is_random_and_everybodys_own(place):
    """The same plan gives the same files, a larger sample holds a smaller one, and another plan gives others."""
    files = [f"/data/f{i}.root" for i in range(500)]
    one, ten = manifest.sample("plan", files, 1), manifest.sample("plan", files, 10)
    assert (len(one), len(ten), len(manifest.sample("plan", files, 0.01))) == (5, 50, 1)
    assert ten[:5] == one == manifest.sample("plan", files, 1)
    assert manifest.sample("other", files, 10) != ten
    assert manifest.sample("plan", files, 0) == []


@pytest.mark.slow
def test_a_run_that_is_not_complete_has_no_manifest(place, tmp_path):
    """A run that begins takes the old manifest away; complete again, it has one, with the inputs' first hashes."""
    shutil.copytree(place, tmp_path / "p", symlinks=True)
    folder = tmp_path / "p"
    first = manifest.read(RunDir(folder / "one"))
    text = (folder / "stages.py").read_text()
    (folder / "stages.py").write_text(text.replace("return Histograms(", "raise ValueError\n    return Histograms("))
    assert command("run", "c.yaml", "--run-dir", "one", cwd=folder).returncode != 0
    assert not (folder / "one/manifest.json").exists()
    (folder / "stages.py").write_text(text)
    assert command("run", "c.yaml", "--run-dir", "one", cwd=folder).returncode == 0
    again = manifest.read(RunDir(folder / "one"))
    assert {n: o["sha256"] for n, o in again["outputs"].items()} == {
        n: o["sha256"] for n, o in first["outputs"].items()
    }
    hashed = [{Path(url).name: what[2] for url, what in m["inputs"]["hashed"].items()} for m in (first, again)]
    assert hashed[0] == hashed[1]
    assert len(hashed[0]) == 5
