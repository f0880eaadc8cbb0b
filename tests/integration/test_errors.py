"""Wrong requests: one clear error that names what, where and the remedy; nothing started, nothing left."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from campaign.cli import main
from tests.conftest import campaign_dict, change, command, report_of, write_tree


def edit(folder: Path, change_it: Callable[[dict], object]) -> None:
    """Edit the folder's campaign in place."""
    path = folder / "c.yaml"
    data = yaml.safe_load(path.read_text())
    change_it(data)
    path.write_text(yaml.safe_dump(data, sort_keys=False))


WRONG = {
    "server: for servers:": (
        lambda d: d.__setitem__("server", d.pop("servers")),
        ["c.yaml:", "server: unknown key; did you mean 'servers'?", "allowed:"],
    ),
    "a stage's misspelt key": (
        lambda d: d["stages"]["select"].__setitem__("form", "x"),
        ["c.yaml:", "stages.select.form", "did you mean 'from'?"],
    ),
    "a server option's misspelt key": (
        lambda d: d["servers"].__setitem__("model_repositry", d["servers"].pop("model_repository")),
        ["c.yaml:", "servers.model_repositry", "did you mean 'model_repository'?"],
    ),
    "a missing file": (
        lambda d: d["datasets"]["mc"].__setitem__("files", "data/mc/none.root"),
        ["c.yaml:", "datasets.mc.files", "there is no file", "none.root", "remedy"],
    ),
    "a pattern without files": (
        lambda d: d["datasets"]["mc"].__setitem__("files", "data/mk/*.root"),
        ["c.yaml:", "datasets.mc.files", "no file matches"],
    ),
    "a wrong tree": (
        lambda d: d["datasets"]["data"].__setitem__("tree", "event"),
        ["c.yaml:", "datasets.data", "did you mean 'events'?", "data_"],
    ),
    "a wrong tree in a variation": (
        lambda d: d["variations"]["tree_up"].__setitem__("tree", "events_upp"),
        ["c.yaml:", "variations.tree_up", "did you mean 'events_up'?"],
    ),
    "a wrong branch in a variation": (
        lambda d: d["variations"]["branch_up"].__setitem__("branches", {"y": "y_upp"}),
        ["c.yaml:", "variations.branch_up", "did you mean 'y_up'?"],
    ),
    "a wrong weight": (
        lambda d: d["variations"]["weight_up"].__setitem__("weight", "kk[3]"),
        ["c.yaml:", "variations.weight_up.weight", "'kk' is not one of the branches"],
    ),
    "a weight that is code": (
        lambda d: d["variations"]["weight_up"].__setitem__("weight", "__import__('os').system('touch hacked')"),
        ["c.yaml:", "variations.weight_up.weight", "is not understood"],
    ),
    "a wrong model": (
        lambda d: d["servers"].__setitem__("models", {"batch_sensitiv": {}}),
        ["c.yaml:", "servers.models.batch_sensitiv", "did you mean 'batch_sensitive'?"],
    ),
    "a stage that names another model": (
        lambda d: d["stages"]["predict"].__setitem__("model", "qg_tagger"),
        ["c.yaml:", "stages.predict.model", "'qg_tagger' is not one of the models"],
    ),
    "a wrong input": (
        lambda d: d["stages"]["predict"].__setitem__("inputs", {"Z": ["x"]}),
        ["c.yaml:", "stages.predict.inputs.Z", "'Z' is not one of the inputs of batch_sensitive"],
    ),
    "a wrong output": (
        lambda d: d["stages"]["predict"].__setitem__("outputs", {"p": "Z"}),
        ["c.yaml:", "stages.predict.outputs.p", "'Z' is not one of the outputs of batch_sensitive"],
    ),
    "a batch that is too large": (
        lambda d: d["servers"]["models"]["batch_sensitive"].__setitem__("batch", 10**6),
        ["c.yaml:", "servers.models.batch_sensitive.batch", "max_batch_size"],
    ),
    "a last request that is larger than the others": (
        lambda d: d["servers"]["models"]["batch_sensitive"].__setitem__("tails", [16, 256]),
        ["c.yaml:", "servers.models.batch_sensitive.tails", "256 is not less than the rows of a full request"],
    ),
    "a stage that is not there": (
        lambda d: d["stages"]["select"].__setitem__("use", "stages.py:selekt"),
        ["c.yaml:", "stages.select.use", "did you mean 'select'?"],
    ),
    "a file of stages that is not there": (
        lambda d: d["stages"]["select"].__setitem__("use", "stage.py:select"),
        ["c.yaml:", "stages.select.use", "there is no file"],
    ),
    "a provider nobody registered": (
        lambda d: d.__setitem__("provider", "slurm"),
        ["c.yaml:", "provider", "known: local, parsl"],
    ),
    "a kept artefact that is not kept": (
        lambda d: d["stages"]["predict"].__setitem__("keep", False),
        ["c.yaml:", "stages.predict", "add 'keep: true'"],
    ),
    "a Parsl provider that Parsl has not": (
        lambda d: d.__setitem__("provider", {"kind": "parsl", "provider": {"class": "SlurmProvder"}}),
        ["c.yaml:", "provider.provider", "did you mean 'SlurmProvider'?"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_exits_2_before_anything_is_started(
    small: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2; the message names file, line, key, what was found and what is allowed; no server, no log, no report."""
    change_it, texts = WRONG[what]
    edit(small, change_it)
    monkeypatch.chdir(small)
    assert main(["run", "c.yaml", "--run-dir", "r"]) == 2
    said = capsys.readouterr().err
    for text in texts:
        assert text in said
    assert "Traceback" not in said
    assert not (small / "r" / "servers").exists()
    assert not (small / "r" / "report.json").exists()
    assert not (small / "hacked").exists()


def test_a_branch_that_only_the_stage_names_is_found_before_a_server_starts(small: Path) -> None:
    """A branch a stage touches and the file has not: exit 2 with the stage, the branch and the file."""
    (small / "stages.py").write_text((small / "stages.py").read_text().replace("batch.y > -1", "batch.yy > -1"))
    done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert done.returncode == 2, done.stdout + done.stderr
    for text in ("asks for 'yy', which is not there", "stage select", "tree events", "stages.py"):
        assert text in done.stderr
    assert not (small / "r" / "servers").exists()


def test_a_stage_that_drops_the_variation_weight_is_refused(small: Path) -> None:
    """A weight variation that could not differ from nominal is said so, not run."""
    text = (small / "stages.py").read_text().replace(", ctx.weight: kept[ctx.weight]}", "}")
    (small / "stages.py").write_text(text)
    done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "drops the column ctx.weight" in done.stderr
    assert "weight_up" in done.stderr


def bad_file(small: Path, how: str) -> Path:
    """A file that cannot be read, among good ones."""
    path = small / "data" / "mc" / "mc_9.root"
    if how == "truncated":
        write_tree(path, n=5000, seed=9)
        write_tree(path, "events_up", n=5000, seed=9, mode="update")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "no bytes":
        path.write_bytes(b"")
    else:
        path.write_bytes(b"this is no ROOT file\n" * 100)
    return path


SLOW = pytest.mark.slow


@pytest.mark.parametrize("how", ["not ROOT", *(pytest.param(h, marks=SLOW) for h in ("no bytes", "truncated"))])
def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_done(small: Path, how: str) -> None:
    """Exit 1; the file is named once; what does not depend on it is complete; what does is named as missing."""
    path = bad_file(small, how)
    done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert done.returncode == 1, done.stdout + done.stderr
    report = report_of(small / "r")
    assert report["status"] == "failed"
    named = [e for e in report["errors"] if str(path) in e]
    assert len(named) == 1
    assert "cannot be read" in named[0]
    assert "predict/data/nominal" in report["outputs"]
    assert "predict/mc/nominal" not in report["outputs"]
    assert any("missing:" in e and "predict/mc/nominal" in e for e in report["errors"])
    path.unlink()
    done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert report_of(small / "r")["tasks"]["reused"] >= 5, "what was done is not done again"


MODELS = {
    "crashes_at_load": ["failed to load 'crashes_at_load'", "the weights of this model are missing on purpose"],
    "wrong_answer": ["wrong_answer", "wrong answer", "known is"],
    "hangs_at_load": ["not ready within 6 s"],
}


@pytest.mark.parametrize("model", [pytest.param(m, marks=SLOW) for m in MODELS])
def test_a_model_that_does_not_come_up_fails_the_campaign_with_its_log(small: Path, model: str) -> None:
    """Exit 1 with one error that names the model or the server and shows the end of the server's log."""
    made = campaign_dict(model)
    made["servers"]["start_deadline_s"] = 6
    (small / "c.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert done.returncode == 1, done.stdout + done.stderr
    report = report_of(small / "r")
    assert len(report["errors"]) == 1, report["errors"]
    for text in [*MODELS[model], "server-0"]:
        assert text in report["errors"][0]
    assert "log:" in report["errors"][0]


def test_a_wrong_shape_is_said_before_anything_is_sent(small: Path) -> None:
    """Two columns for a model that takes one: one error for all files, with expected and given shape."""
    edit(small, lambda d: d["stages"]["predict"].__setitem__("inputs", {"X": ["x", "y"]}))
    done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert done.returncode == 1, done.stdout + done.stderr
    report = report_of(small / "r")
    assert "expected shape (any, 1), got (" in report["errors"][0]
    assert "model batch_sensitive, input X" in report["errors"][0]
    assert [s["statistics"] for s in report["servers"]] in ([{}], [{"batch_sensitive": [0, 0]}])


def test_a_stage_that_raises_shows_the_users_own_lines(small: Path) -> None:
    """Exit 1 with the exception, the stage, the file and the line of the user's code."""
    text = (small / "stages.py").read_text()
    (small / "stages.py").write_text(text.replace("    h = Histogram(", "    1 / 0\n    h = Histogram("))
    done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
    assert done.returncode == 1, done.stdout + done.stderr
    error = report_of(small / "r")["errors"][0]
    for part in ("ZeroDivisionError", "stage first (stages.py:fill)", "mc_", "1 / 0"):
        assert part in error


def test_check_says_right_or_wrong_and_starts_nothing(small: Path) -> None:
    """`campaign check` exits 0 on the good file and 2 on a wrong one."""
    assert command("check", "c.yaml", cwd=small).returncode == 0
    change(small, read_rows=0)
    done = command("check", "c.yaml", cwd=small)
    assert done.returncode == 2
    assert "read_rows" in done.stderr
    assert not (small / "runs").exists()


def test_a_run_directory_in_use_is_refused_with_its_owner(small: Path) -> None:
    """The second run on one directory exits 2 and names host and pid of the first."""
    import subprocess

    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom campaign.storage.rundir import RunDir\n"
        "with RunDir(Path('r').resolve()).owned():\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], cwd=small, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = command("run", "c.yaml", "--run-dir", "r", cwd=small)
        assert done.returncode == 2
        assert f"pid {holder.pid}" in done.stderr
    finally:
        holder.kill()
        holder.wait()
