"""The main job, whole: the same outputs for any partition, and the servers' own counters agree with the rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import uproot
import yaml

from campaign import load
from campaign.driver.run import run
from campaign.outputs import read_columns, read_histograms
from tests.conftest import change, command, hashes, make_small, report_of, yaml_of
from tests.report.pages import ET, outside, shown


@pytest.fixture
def undisturbed(small: Path) -> dict[str, str]:
    """Hashes of the campaign with one worker and one server, whose run directory the test may go on with."""
    done = command("run", "c.yaml", "--workers", "1", "--run-dir", "one", cwd=small)
    assert done.returncode == 0, done.stderr + done.stdout
    return hashes(small / "one")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose campaign is complete under ``one``; for tests that only look."""
    folder = make_small(tmp_path_factory.mktemp("finished"))
    done = command("run", "c.yaml", "--workers", "1", "--run-dir", "one", cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


def test_any_worker_and_server_count_and_provider_gives_the_same_bytes(
    small: Path, undisturbed: dict[str, str]
) -> None:
    """Workers 1 and 2, servers 1 and 2 and 3, local and parsl: one sha256 per output."""
    for number, args in enumerate(
        (["--workers", "2", "--servers", "2"], ["--servers", "3"], ["--provider", "parsl", "--workers", "2"])
    ):
        done = command("run", "c.yaml", "--run-dir", f"r{number}", *args, cwd=small)
        assert done.returncode == 0, done.stderr + done.stdout
        assert hashes(small / f"r{number}") == undisturbed
    assert len(undisturbed) == 4 * 4 + 2 + 4 - 1, sorted(undisturbed)


def test_executions_times_batch_cover_exactly_the_rows(small: Path) -> None:
    """The servers' own counters: a file's rows go without gaps, and the weight variation sends none."""
    report = run(load(small / "c.yaml"), run_dir=small / "r", servers=2, progress=False)
    rows = 0
    batches = 0
    for path in sorted((small / "data").rglob("*.root")):
        with uproot.open(path) as file:
            for tree, cut in (("events", "y"), ("events", "y_up"), ("events_up", "y")):
                if path.parent.name == "data" and (tree, cut) != ("events", "y"):
                    continue
                y = file[tree][cut].array(library="np")
                kept = int((y > -1).sum())
                rows += kept
                batches += -(-kept // 256)
    told = [s["statistics"]["batch_sensitive"] for s in report.servers]
    assert sum(executions for _, executions in told) == batches
    assert sum(inferred for inferred, _ in told) == batches * 256
    assert report.rows["first"] == rows == sum(report.rows.values())


def test_the_merged_histogram_is_the_sum_of_the_rows(finished: Path) -> None:
    """Kept predictions, filled by hand with math.fsum's precision, equal the merged output; ROOT holds the same."""
    report = report_of(finished / "one")
    columns = read_columns(Path(report["outputs"]["predict/mc/nominal"]["path"]))
    merged = read_histograms(Path(report["outputs"]["first/mc/nominal"]["path"]))["p"].to_hist()
    values, edges = np.histogram(columns.p, bins=np.linspace(-4, 4, 21), weights=columns.w)
    assert np.allclose(merged.values(), values, rtol=1e-12)
    with uproot.open(report["outputs"]["first/mc/nominal"]["root"]) as file:
        assert np.array_equal(file["p"].values(), merged.values())
        assert np.array_equal(file["p"].variances(), merged.variances())
    assert len(edges) == 21


def test_the_page_of_a_run_shows_all_of_it(finished: Path) -> None:
    """report.html: every output, worker, server and slow file of the run; no address outside, no note of a failure."""
    report, text = report_of(finished / "one"), (finished / "one" / "report.html").read_text()
    root = ET.fromstring(text.partition("\n")[2])
    assert shown(root) == set(report["outputs"])
    assert not outside(text, root)
    assert not [w for w in report["warnings"] if "report.html" in w]
    notes = json.loads((finished / "one" / "logs" / "page.json").read_text())
    (spans,) = notes["workers"].values()
    assert 0 < spans[0][0] < spans[-1][1] < report["wall_s"]
    assert {x["file"] for x in notes["slowest"]} == {str(p) for p in (finished / "data").rglob("*.root")}
    assert [(s["name"], s["started"] < s["ready"] < s["ended"]) for s in notes["servers"]] == [("server-0", True)]
    for name in ("server-0", "worker ", "batch_sensitive", "SHA-256", "campaign: "):
        assert name in text, name
    done = command("report", "one", "--html", cwd=finished)
    assert (done.returncode, done.stdout.strip()) == (0, str(finished / "one" / "report.html"))
    assert (finished / "one" / "report.html").read_text() == text, "made again from the run directory, it is the same"


def test_report_and_show_print_what_the_run_made(finished: Path) -> None:
    """`report --json` is report.json; `show` lists the outputs, draws a histogram, and gives its content as a table."""
    report = report_of(finished / "one")
    assert json.loads(command("report", "one", "--json", cwd=finished).stdout) == report
    assert command("report", "one", "--text", cwd=finished).stdout == command("report", "one", cwd=finished).stdout
    listed = command("show", "one", cwd=finished).stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(report["outputs"])
    done = command("show", "one", "first/mc/nominal/p", cwd=finished)
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines() if line.startswith("  [")]
    merged = read_histograms(Path(report["outputs"]["first/mc/nominal"]["path"]))["p"].to_hist()
    assert [float(row[2]) for row in table] == pytest.approx(merged.values().tolist(), rel=1e-11)
    assert [float(row[3]) ** 2 for row in table] == pytest.approx(merged.variances().tolist(), rel=1e-11)
    assert "y: double" in command("show", "one", "predict/mc/nominal", cwd=finished).stdout
    for wrong, near in (("first/mc/nominl", "first/mc/nominal"), ("first/mc/nominal/q", "p")):
        done = command("show", "one", wrong, cwd=finished)
        assert done.returncode == 2
        assert near in done.stderr


def test_what_a_variation_does_not_touch_is_not_repeated(finished: Path) -> None:
    """Data are read and inferred once; what depends on a frozen value made from varied inputs is made again."""
    undisturbed = hashes(finished / "one")
    names = set(undisturbed)
    assert "predict/data/nominal" in names
    assert not any(n.startswith("predict/data/") for n in names - {"predict/data/nominal"})
    assert {f"second/data/{v}" for v in ("nominal", "tree_up", "branch_up", "weight_up")} <= names
    assert {f"mean/all/{v}" for v in ("nominal", "tree_up", "branch_up", "weight_up")} <= names
    assert len({undisturbed[f"first/mc/{v}"] for v in ("nominal", "tree_up", "branch_up", "weight_up")}) == 4


@pytest.mark.slow
def test_yaml_script_and_overrides_give_the_same_plan_and_bytes(small: Path, undisturbed: dict[str, str]) -> None:
    """A Python script without a __main__ guard, run as a script, gives the outputs of the YAML file."""
    data = yaml.safe_load((small / "c.yaml").read_text())
    data["stages"] = {k: {("from_" if a == "from" else "with_" if a == "with" else a): b for a, b in v.items()}
                      for k, v in data["stages"].items()}  # fmt: skip
    (small / "script.py").write_text(
        "from campaign import Campaign, Dataset, ServerSpec, StageSpec, Variation\n"
        f"d = {data!r}\n"
        "report = Campaign(campaign=d['campaign'], datasets={k: Dataset(**v) for k, v in d['datasets'].items()},\n"
        "    servers=ServerSpec(**d['servers']), stages={k: StageSpec(**v) for k, v in d['stages'].items()},\n"
        "    variations={k: Variation(**v) for k, v in d['variations'].items()}, workers=2, read_rows=700,\n"
        ").run(run_dir='script')\n"
        "print(report.status)\n"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "script.py"], cwd=small, capture_output=True, text=True, check=False)
    assert done.stdout == "complete\n", done.stderr
    assert hashes(small / "script") == undisturbed
    change(small, read_rows=5)
    done = command("run", "c.yaml", "--set", "read_rows=700", "--set", "servers.count=2", "--run-dir", "set", cwd=small)
    assert done.returncode == 0, done.stderr
    assert hashes(small / "set") == undisturbed


def test_a_second_run_does_nothing_again(small: Path, undisturbed: dict[str, str]) -> None:
    """On a complete run directory no task is done and no server is started, and the outputs are the same."""
    done = command("run", "c.yaml", "--run-dir", "one", cwd=small)
    report = report_of(small / "one")
    assert done.returncode == 0
    assert report["tasks"]["done"] == 0
    assert report["tasks"]["reused"] == report["tasks"]["total"] > 0
    assert report["servers"] == []
    assert hashes(small / "one") == undisturbed
    (small / "stages.py").write_text((small / "stages.py").read_text().replace("Regular(20,", "Regular(40,"))
    done = command("run", "c.yaml", "--run-dir", "one", cwd=small)
    report = report_of(small / "one")
    assert report["servers"] == [], "a changed fill needs no inference"
    assert report["tasks"]["done"] > 0
    again = hashes(small / "one")
    assert again["predict/mc/nominal"] == undisturbed["predict/mc/nominal"]
    assert again["first/mc/nominal"] != undisturbed["first/mc/nominal"]


def test_altering_a_frozen_value_between_the_passes_ends_the_run(small: Path) -> None:
    """A frozen file that gets another byte before the second pass is refused by name; nothing is made from it."""
    vandal = """

def vandal(merged, ctx):
    import time
    path = ctx.artefacts.parents[2] / "frozen" / "mean" / (ctx.variation + ".json")
    while not path.exists():
        time.sleep(0.01)
    path.chmod(0o644)
    path.write_text(path.read_text() + " ")
    return {}
"""
    (small / "stages.py").write_text((small / "stages.py").read_text() + vandal)
    stages = yaml.safe_load((small / "c.yaml").read_text())["stages"]
    stages["vandal"] = {"use": "stages.py:vandal", "reduce": "first"}
    stages["second"]["with"] = ["mean", "vandal"]
    change(small, stages=stages, variations={})
    done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert done.returncode == 1
    assert "frozen/mean/nominal.json: was altered after it was frozen" in done.stdout
    assert not any(name.startswith("second/") for name in hashes(small / "r"))


@pytest.mark.slow
def test_an_altered_frozen_value_is_not_taken_up_again(small: Path, undisturbed: dict[str, str]) -> None:
    """Run again on a run directory whose frozen value was altered: refused, until the file is deleted."""
    path = small / "one" / "frozen" / "mean" / "nominal.json"
    path.chmod(0o644)
    path.write_text(path.read_text() + " ")
    done = command("run", "c.yaml", "--run-dir", "one", cwd=small)
    assert done.returncode == 1
    assert "frozen/mean/nominal.json: was altered after it was frozen" in done.stdout
    path.unlink()
    assert command("run", "c.yaml", "--run-dir", "one", cwd=small).returncode == 0
    assert hashes(small / "one") == undisturbed


def test_the_report_says_what_the_interface_promises(finished: Path) -> None:
    """Every key that other programs read is there, with what it should hold."""
    report = report_of(finished / "one")
    assert report["status"] == "complete"
    assert report["reproducible"] is True
    assert report["campaign"] == "small"
    assert report["datasets"] == {"mc": {"files": 3, "events": 3400}, "data": {"files": 2, "events": 1500}}
    assert set(report["tasks"]) == {"total", "done", "reused", "failed"}
    assert set(report["rows"]) == {
        "first", "same_server", "other_server", "restarted_server", "local_twin", "parked",
    }  # fmt: skip
    assert report["wall_s"] > 0
    assert report["versions"]["inference-campaign"]
    assert set(report["artefacts"]) == {f"mean/{v}/note.txt" for v in ("nominal", "tree_up", "branch_up", "weight_up")}
    for output in report["outputs"].values():
        assert Path(output["path"]).exists()
        assert len(output["sha256"]) == 64
    assert json.loads(Path(report["outputs"]["second/data/nominal"]["path"]).read_text())["n"] > 0


def test_plan_and_status_and_report_tell_the_same(finished: Path) -> None:
    """The commands that look at a run agree with its report; they start nothing."""
    assert "0 tasks to do" in command("plan", "c.yaml", "--run-dir", "one", cwd=finished).stdout
    assert "not running; complete" in command("status", "one", cwd=finished).stdout
    assert "campaign small: complete" in command("report", "one", cwd=finished).stdout
    assert command("stop", "one", cwd=finished).stdout == "not running\n"
    assert command("status", "nowhere", cwd=finished).returncode == 2
    (finished / "data" / "mc" / "mc_0.root").touch()
    todo = command("plan", "c.yaml", "--run-dir", "one", cwd=finished).stdout
    assert "mc_0.root (mc): first/nominal" in todo
    assert "mc_2.root (mc): first" not in todo, "another file's first pass stands"
    assert "mc_2.root (mc): second/nominal" in todo, "but what follows the merge is to be done again"


def test_the_profile_accounts_for_the_workers_seconds(finished: Path) -> None:
    """What was read, done, waited for and written is what the worker's seconds were; the sentence is printed."""
    told = report_of(finished / "one")["profile"]
    assert list(told["stages"]) == ["read", "select", "predict", "first", "second"]
    assert told["workers"] == 1
    steps = told["timeline"]
    assert list(steps) == ["checked", "pool", "ready", "answer", "tasks", "stopped"]
    assert list(steps.values()) == sorted(steps.values())
    assert sum(told["sums"].values()) == pytest.approx(steps["tasks"] - steps["checked"], abs=0.01)
    assert all(0 <= part <= 1 for part in told["computing"].values())
    assert told["worker_peak_mb"] > 50
    done = command("report", "one", "--profile", cwd=finished)
    assert f"bound by: {told['bound_by']}" in done.stdout
    assert "bound by" not in command("report", "one", cwd=finished).stdout


@pytest.mark.slow
def test_tune_proposes_what_it_has_measured(finished: Path) -> None:
    """The table holds the rates; batch and window proposed are among those tried; nothing is left in the folder."""
    before = sorted(p.name for p in finished.iterdir())
    (code,) = finished.glob("*.py")
    text = code.read_text()
    code.write_text(text + '\nprint("at import")\n')  # by the child that measures
    done = command("tune", "c.yaml", cwd=finished)
    code.write_text(text)
    assert done.returncode == 0, done.stderr
    assert "at import" not in done.stdout + done.stderr
    assert sorted(p.name for p in finished.iterdir()) == before
    lines = done.stdout.splitlines()
    sizes = {line.split()[0] for line in lines if line.split()[0].isdigit()}
    (batch,) = [line.split("batch=")[1].split()[0] for line in lines if "batch=" in line]
    (window,) = [line.split("window=")[1].split()[0] for line in lines if "window=" in line]
    assert batch in sizes
    assert window in {"1", "2", "4", "8", "16"}
    assert "2 files, 2,100 events" in lines[0]


def test_a_model_behind_a_model_sees_every_range(small: Path) -> None:
    """Two stages that infer, one behind the other, over a file of many ranges: all rows come through both."""
    stages = yaml_of(small)["stages"]
    stages["twice"] = {**stages["predict"], "from": "predict", "inputs": {"X": ["p"]}, "outputs": {"q": "Y"}}
    change(small, stages=stages, read_rows=300, variations={})
    report = run(load(small / "c.yaml"), run_dir=small / "r", progress=False)
    for dataset in ("mc", "data"):
        once, twice = (
            read_columns(Path(report.outputs[f"{s}/{dataset}/nominal"]["path"])) for s in ("predict", "twice")
        )
        assert len(twice) == len(once) > 1000
        assert np.array_equal(twice.p, once.p)
        assert not np.array_equal(twice.q, once.p)
