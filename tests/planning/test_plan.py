"""Campaign -> tasks: what is read, what reruns for a variation, and what a result depends on."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest

from campaign import Campaign, Dataset, ModelSpec, ServerSpec, StageSpec, Variation
from campaign.driver.partial_index import PartialIndex
from campaign.errors import SpecError
from campaign.planning.plan import longest_first, tasks_of
from campaign.planning.planner import plan
from campaign.spec import yaml_file
from campaign.storage.receipts import Receipts

STAGES = '''
"""Stages of a small analysis."""
import helpers
from helpers import scale

CUT = 20


def select(batch, ctx):
    """Keep."""
    return {"pt": scale(batch.pt), "w": batch[ctx.weight]}


def first(batch, ctx):
    return {"n": 1}


def factors(merged, ctx):
    return {"f": 1.0}


def second(batch, ctx):
    return {"n": CUT * ctx.frozen["factors"]["f"]}


def extract(merged, ctx):
    return {"s": 1.0}


def counts(batch, ctx):
    return {"n": 1}
'''

YAML = """\
campaign: c
datasets:
  mc: {files: "mc/*.root", tree: nominal, is_mc: true}
  data: {files: "data/*.root", tree: nominal}
servers: {models: {tagger: {batch: 8}, other: {}}}
stages:
  select: {use: "st.py:select"}
  predict: {use: infer, from: select, model: tagger, inputs: {X: [pt]}, outputs: {score: S}, keep: true}
  first: {use: "st.py:first", from: predict, datasets: [mc]}
  factors: {use: "st.py:factors", reduce: first}
  second: {use: "st.py:second", from: predict, with: [factors]}
  extract: {use: "st.py:extract", reduce: second}
  raw: {use: "st.py:counts", datasets: [data]}
variations:
  jes: {datasets: [mc], tree: JES}
  trk: {datasets: [data], branches: {n: n_eff}}
  pdf: {datasets: [mc], weight: "pdf[7]"}
  alt: {datasets: [mc], files: "alt/*.root"}
"""

MODELS = {"tagger": {"sha256": "1"}, "other": {"sha256": "2"}}


@pytest.fixture
def folder(tmp_path):
    yield from folder_of(tmp_path)


def folder_of(tmp_path):
    for name in ("mc/b.root", "mc/a.root", "data/d.root", "alt/x.root"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * len(name))
        os.utime(path, ns=(10**18, 10**18))
    (tmp_path / "st.py").write_text(STAGES)
    (tmp_path / "helpers.py").write_text("def scale(x):\n    return x / 1000\n\n\ndef unrelated():\n    return 1\n")
    (tmp_path / "c.yaml").write_text(YAML)
    yield tmp_path
    sys.modules.pop("helpers", None)
    sys.path[:] = [p for p in sys.path if p != str(tmp_path)]


def load(folder, text=YAML, *sets):
    (folder / "c.yaml").write_text(text)
    return yaml_file.load(folder / "c.yaml", sets)


def make(folder, text=YAML, *sets, models=MODELS):
    return plan(load(folder, text, *sets), models)


def steps(made):
    return {(s.stage, s.source.dataset, s.variation, s.source.file.url): s for t in made.tasks for s in t.steps}


def at_level(made, level):
    """The tasks of one pass over the files."""
    return [t for t in made.tasks if t.steps[0].level == level]


def variations(made, stage, dataset):
    return {v for s, d, v, _ in steps(made) if (s, d) == (stage, dataset)}


# What exists ----------------------------------------------------------------------------------------------------------


def test_outputs_are_named_by_stage_dataset_and_variation(folder):
    """One output per stage that leaves something, dataset and variation that changes it; nominal where it does not."""
    assert {o.name for o in make(folder).outputs} == {
        "predict/mc/nominal", "predict/mc/jes", "predict/mc/pdf", "predict/mc/alt", "predict/data/nominal",
        "predict/data/trk",
        "first/mc/nominal", "first/mc/jes", "first/mc/pdf", "first/mc/alt",
        "second/mc/nominal", "second/mc/jes", "second/mc/pdf", "second/mc/alt",
        "second/data/nominal", "second/data/jes", "second/data/pdf", "second/data/alt", "second/data/trk",
        "raw/data/nominal", "raw/data/trk",
    }  # fmt: skip


def test_a_variation_reruns_what_depends_on_it_and_shares_the_rest(folder):
    """Stages on changed inputs, or on a frozen value made from them, rerun for all their datasets; no other does."""
    made = make(folder)
    every = {"nominal", "jes", "pdf", "alt"}
    assert variations(made, "select", "mc") == every
    assert variations(made, "select", "data") == {"nominal", "trk"}
    assert variations(made, "second", "data") == every | {"trk"}
    assert variations(made, "second", "mc") == every  # trk changes data alone, and factors come from mc
    assert variations(made, "raw", "data") == {"nominal", "trk"}
    assert {(r.stage, r.variation) for r in made.reduces} == {
        *(("factors", v) for v in every), *(("extract", v) for v in every | {"trk"})
    }  # fmt: skip


def test_a_reduce_stage_merges_nominal_where_a_dataset_is_not_varied(folder):
    """``merged`` holds every dataset of the stage: varied where the variation reaches it, else nominal."""
    reduces = {(r.stage, r.variation): r for r in make(folder).reduces}
    assert {d: o.variation for d, o in reduces["extract", "trk"].inputs.items()} == {"data": "trk", "mc": "nominal"}
    assert {d: o.variation for d, o in reduces["extract", "jes"].inputs.items()} == {"data": "jes", "mc": "jes"}
    assert {d: o.variation for d, o in reduces["factors", "jes"].inputs.items()} == {"mc": "jes"}
    assert reduces["extract", "trk"].inputs["data"].name == "second/data/trk"


def test_a_frozen_value_is_the_variations_own_or_nominal(folder):
    """A stage gets the frozen value of its variation, and the nominal one where the variation does not reach it."""
    got = steps(make(folder))
    frozen = {(d, v): s.frozen for (stage, d, v, _), s in got.items() if stage == "second"}
    assert frozen["data", "jes"] == (("factors", "jes"),)
    assert frozen["data", "trk"] == (("factors", "nominal"),)
    assert frozen["mc", "nominal"] == (("factors", "nominal"),)


def test_variations_read_what_they_say(folder):
    """Tree, branches and files are the variation's for its datasets; a weight alone reads the nominal events."""
    got = {(s, d, v): x.source for (s, d, v, _), x in steps(make(folder)).items()}
    assert got["select", "mc", "jes"].tree == "JES"
    assert got["select", "data", "trk"].branches == (("n", "n_eff"),)
    assert got["select", "data", "trk"].tree == "nominal"
    assert got["select", "mc", "alt"].file.url.endswith("alt/x.root")
    assert got["select", "mc", "pdf"] == got["select", "mc", "nominal"]


def test_a_weight_reaches_the_first_stage_alone_and_shares_the_pass(folder):
    """A weight-only variation goes through the nominal pass of the same file; only its first stage has the weight."""
    made = make(folder)
    both = [t for t in at_level(made, 0) if {"nominal", "pdf"} == {s.variation for s in t.steps}]
    assert len(both) == 2  # one per file of mc
    for task in both:
        assert {(s.stage, s.weight) for s in task.steps if s.variation == "pdf"} == {
            ("select", "pdf[7]"), ("predict", None), ("first", None)
        }  # fmt: skip
        assert {s.weight for s in task.steps if s.variation == "nominal"} == {None}


def test_a_variation_of_another_tree_is_a_pass_of_its_own(folder):
    """Events that differ are not read in one pass: a task has one file and one tree."""
    for task in make(folder).tasks:
        assert (
            len({(s.source.file.url, s.source.tree, s.source.branches) for s in task.steps if not task.artefact}) <= 1
        )


def test_levels_follow_the_barriers(folder):
    """What needs a frozen value comes a level later and reads the kept artefact: inference runs once."""
    made = make(folder)
    assert {line.level for line in made.lines} == {0, 1}
    assert {s.stage for t in at_level(made, 0) for s in t.steps} == {"select", "predict", "first", "raw"}
    assert {s.stage for t in at_level(made, 1) for s in t.steps} == {"second"}
    kept = {s.key: s for t in at_level(made, 0) for s in t.steps if s.stage == "predict"}
    for task in at_level(made, 1):
        assert task.artefact in kept
        assert all(s.parent == task.artefact for s in task.steps)


def test_a_parent_comes_before_its_children(folder):
    """In a task every step stands after the one it takes its batch from."""
    for task in make(folder).tasks:
        seen = {task.artefact, None}
        for step in task.steps:
            assert step.parent in seen
            seen.add(step.key)


def test_what_is_not_kept_cannot_be_read_later(folder):
    """A second pass over a stage without ``keep: true`` is refused at that stage's line, with the remedy."""
    with pytest.raises(SpecError) as caught:
        make(folder, YAML.replace(", keep: true", ""))
    assert str(caught.value).startswith(f"{folder}/c.yaml:8: stages.predict: ")
    assert "keep: true" in caught.value.remedy


def test_a_dataset_the_stage_before_does_not_have_is_refused(folder):
    """``datasets`` of a stage are among those of the stage it takes from."""
    with pytest.raises(SpecError, match=r"stages\.x\.datasets.*'first', has no 'data'"):
        make(folder, YAML.replace("  raw:", '  x: {use: "st.py:first", from: first, datasets: [data]}\n  raw:'))


# The same whatever way it is said -------------------------------------------------------------------------------------


def in_python(folder, code):
    return Campaign(
        campaign="c",
        datasets={
            "data": Dataset(files=("data/*.root",), tree="nominal"),
            "mc": Dataset(files=("mc/b.root", "mc/a.root"), tree="nominal", is_mc=True),
        },
        servers=ServerSpec(models={"other": ModelSpec(), "tagger": ModelSpec(batch=8)}),
        stages={
            "raw": StageSpec(use=code.counts, datasets=("data",)),
            "extract": StageSpec(use=code.extract, reduce="second"),
            "second": StageSpec(use=code.second, from_="predict", with_="factors"),
            "factors": StageSpec(use=code.factors, reduce="first"),
            "first": StageSpec(use=code.first, from_="predict", datasets="mc"),
            "predict": StageSpec(
                use="infer", from_="select", keep=True,
                options={"model": "tagger", "inputs": {"X": ["pt"]}, "outputs": {"score": "S"}},
            ),
            "select": StageSpec(use=code.select),
        },
        variations={
            "alt": Variation(datasets="mc", files="alt/*.root"),
            "pdf": Variation(datasets="mc", weight="pdf[7]"),
            "trk": Variation(datasets="data", branches={"n": "n_eff"}),
            "jes": Variation(datasets="mc", tree="JES"),
        },
    ).at(folder)  # fmt: skip


def test_yaml_and_python_give_the_same_plan(folder, monkeypatch):
    """The same campaign as a file and as a script, in another order, has the same plan, key by key."""
    monkeypatch.syspath_prepend(folder)
    import st

    try:
        python = plan(in_python(folder, st), dict(reversed(MODELS.items())))
    finally:
        del sys.modules["st"]
    yaml = make(folder)
    assert [t.id for t in yaml.tasks] == [t.id for t in python.tasks]
    assert [list(o.keys) for o in yaml.outputs] == [list(o.keys) for o in python.outputs]
    assert yaml.digest == python.digest


def test_the_order_of_the_description_shows_nowhere(folder):
    """Listing datasets, stages, variations and files in another order gives the same plan."""
    given = load(folder)
    rng = random.Random(1)
    for _ in range(5):
        shuffled = {}
        for part in ("datasets", "stages", "variations"):
            items = list(getattr(given, part).items())
            rng.shuffle(items)
            shuffled[part] = dict(items)
        other = given.model_copy(update=shuffled)
        assert plan(other, MODELS).digest == plan(given, MODELS).digest
        assert plan(other, MODELS).tasks == plan(given, MODELS).tasks


def test_files_are_in_canonical_order(folder):
    """An output's partials follow the sorted names of its files."""
    for output in make(folder).outputs:
        assert list(output.files) == sorted(output.files)
        assert len(output.keys) == len(output.files)


def test_set_gives_the_plan_of_the_file_that_says_so(folder):
    """``--set`` and the same change in the file give the same plan."""
    assert make(folder, YAML, "read_rows=7").digest == make(folder, YAML + "read_rows: 7\n").digest


# What a key depends on ------------------------------------------------------------------------------------------------

ALL = {"select", "predict", "first", "factors", "second", "extract", "raw"}
AFTER_SELECT = ALL - {"raw"}
AFTER_FACTORS = {"factors", "second", "extract"}


def keys(made):
    found = {at: s.key for at, s in steps(made).items()}
    return found | {(r.stage, "all", r.variation, ""): r.key for r in made.reduces}


def changed(before, after):
    assert before.keys() == after.keys()
    return {at for at in before if before[at] != after[at]}


def touch(folder):
    os.utime(folder / "mc/a.root", ns=(1, 1))


def edit(name, old, new):
    def do(folder):
        path = folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return do


CHANGES = {
    "code of one stage": (edit("st.py", '{"s": 1.0}', '{"s": 2.0}'), {"extract"}),
    "code of the first stage": (edit("st.py", "batch.pt)", "batch.pt * 2)"), AFTER_SELECT),
    "a helper in a file beside it": (edit("helpers.py", "/ 1000", "/ 1024"), AFTER_SELECT),
    "a constant": (edit("st.py", "CUT = 20", "CUT = 30"), {"second", "extract"}),
    "frozen upstream": (edit("st.py", '{"f": 1.0}', '{"f": 2.0}'), AFTER_FACTORS),
    "a comment, a docstring and a blank line": (edit("st.py", '"""Keep."""', '"""Keep it."""\n    # why\n'), set()),
    "an unrelated helper": (edit("helpers.py", "return 1\n", "return 2\n"), set()),
    "an unrelated stage": (edit("st.py", "def counts", "def new(b, c):\n    return {}\n\n\ndef counts"), set()),
}


@pytest.mark.parametrize("case", CHANGES)
def test_keys_change_with_the_code_they_run(folder, case):
    """A change in the code redoes the stages that can reach it and what follows them, and nothing else."""
    change, stages = CHANGES[case]
    before = keys(make(folder))
    change(folder)
    assert {at[0] for at in changed(before, keys(make(folder)))} == stages


SETTINGS = {
    "read_rows=7": ALL,
    "stages.predict.outputs.score=T": AFTER_SELECT - {"select"},
    "stages.raw.options.cut=3": {"raw"},
    "datasets.data.is_mc=true": ALL - {"first", "factors"},
    "datasets.mc.metadata={lumi: 1}": AFTER_SELECT,
    "variations.jes.tree=JES2": AFTER_SELECT,
    "workers=3": set(),
    "retries=5": set(),
    "servers.count=2": set(),
    "servers.window=2": set(),
    "task_deadline_s=5": set(),
    "campaign=other": set(),
    "provider=parsl": set(),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_keys_change_with_the_settings_results_depend_on(folder, setting):
    """An option, a dataset or ``read_rows`` redoes what depends on it; workers, servers and providers nothing."""
    before = keys(make(folder))
    assert {at[0] for at in changed(before, keys(make(folder, YAML, setting)))} == SETTINGS[setting]


def test_keys_change_with_the_model_that_is_used(folder):
    """Another model file redoes the inference with that model and what follows it; an unused model nothing."""
    before = keys(make(folder))
    tagger = keys(make(folder, models={**MODELS, "tagger": {"sha256": "new"}}))
    assert {at[0] for at in changed(before, tagger)} == AFTER_SELECT - {"select"}
    assert not changed(before, keys(make(folder, models={**MODELS, "other": {"sha256": "new"}})))


def test_a_stage_that_calls_servers_itself_depends_on_every_model(folder):
    """Code that mentions ``servers`` may ask any model, so its key holds them all."""
    text = YAML.replace("  raw:", '  own: {use: "st.py:own", keep: true}\n  raw:')
    with (folder / "st.py").open("a") as stream:
        stream.write('\n\ndef own(batch, ctx):\n    return ctx.servers.infer("other", {"X": batch.pt})\n')
    before = keys(make(folder, text))
    after = keys(make(folder, text, models={**MODELS, "other": {"sha256": "new"}}))
    assert {at[0] for at in changed(before, after)} == {"own"}


def test_keys_change_with_the_file_that_is_read(folder):
    """A touched file redoes what is made from it, and every merge it is in; other files' steps stay."""
    before = keys(make(folder))
    touch(folder)
    different = changed(before, keys(make(folder)))
    assert {at[3].rpartition("/")[2] for at in different if at[0] in ("select", "predict", "first")} == {"a.root"}
    assert {at[2] for at in different if at[0] == "factors"} == {"nominal", "jes", "pdf"}  # alt reads other files
    assert not [at for at in different if at[0] == "raw"]


def test_a_variation_changes_no_key_but_its_own(folder):
    """Adding a variation leaves every other step as it was."""
    before, after = keys(make(folder)), keys(make(folder, YAML, "variations.new.tree=NEW"))
    assert all(after[at] == key for at, key in before.items())
    assert {at[2] for at in set(after) - set(before)} == {"new"}


def test_equal_stages_are_two_stages(folder):
    """Two stages of the same code and options have their own partials, whether or not one is followed."""
    text = YAML.replace("  raw:", '  copy: {use: "st.py:select"}\n  raw:')
    made = make(folder, text)
    emitted = {s.key for t in made.tasks for s in t.steps if s.emit}
    assert all(set(o.keys) <= emitted for o in made.outputs)
    assert {"copy/mc/nominal", "copy/data/nominal"} <= {o.name for o in made.outputs}


def test_options_that_yaml_cannot_hold_count_by_content(folder):
    """Arrays among the options of a Python campaign are part of the key, all of them; infinity too."""
    import numpy as np

    def digest(value):
        stages = {"raw": StageSpec(use="st.py:counts", options={"table": value})}
        made = Campaign(campaign="c", datasets={"data": Dataset(files="data", tree="t")}, stages=stages)
        return plan(made.at(folder), {}).digest

    table = np.zeros(5000)
    other = table.copy()
    other[2500] = 1
    assert digest(table) == digest(table.copy())
    assert (
        len({digest(v) for v in (table, other, float("inf"), float("nan"), 1, [1], {"a": float("inf")}, {1: 2})}) == 8
    )
    with pytest.raises(SpecError, match="cannot travel"):
        digest(lambda x: x)


# What is left to do ---------------------------------------------------------------------------------------------------


def index(made, tmp_path, *, without=()):
    """What is there if every partial is, but for those of some (stage, file name)."""
    kept = PartialIndex(made, Receipts(tmp_path / "receipts.jsonl"))
    for line in kept.emits:
        names = [url.rpartition("/")[2] for url in line.events.files.urls()]
        places = np.array(
            [i for i, name in enumerate(names) if not {(line.stage, name), (line.stage, "")} & {*without}]
        )
        kept.record([line], places.astype(int), np.zeros((len(places), 1), int), np.zeros(len(places), int))
    return kept


def todo(made, kept):
    return [t for some in made.todo(kept.missing()) for t in tasks_of(some)]


def test_what_is_there_is_left_out(folder, tmp_path):
    """With every partial there is nothing to do; without one, just the task that leaves it."""
    made = make(folder)
    assert made.todo(index(made, tmp_path).missing()) == []
    kept = index(made, tmp_path, without=[("raw", "d.root")])
    tasks = todo(made, kept)
    assert {s.variation for t in tasks for s in t.steps} == {"nominal", "trk"}
    assert [[s.stage for s in t.steps] for t in tasks] == [["raw"], ["raw"]]


def test_files_that_lack_different_things_have_tasks_of_their_own(folder, tmp_path):
    """Of two files each gets the steps that it lacks, and no other; what a task leaves is what was missing."""
    made = make(folder)
    kept = index(made, tmp_path, without=[("first", "a.root"), ("second", "b.root"), ("predict", "b.root")])
    got = {}
    for task in todo(made, kept):
        name = task.source.file.url.rpartition("/")[2]
        got.setdefault(name, set()).update(s.stage for s in task.steps)
        assert all(s.emit or s.stage == "select" for s in task.steps)
    assert got == {"a.root": {"first"}, "b.root": {"select", "predict", "second"}}


def test_a_lost_partial_is_made_from_the_artefact_before_it(folder, tmp_path):
    """Where the artefact is there, nothing before it runs again, neither selection nor inference."""
    made = make(folder)
    tasks = todo(made, index(made, tmp_path, without=[("first", "")]))
    assert tasks
    for task in tasks:
        assert task.artefact is not None
        assert {s.stage for s in task.steps} == {"first"}


def test_long_tasks_are_submitted_first():
    """The order of submission is by size, then canonical; it is the same set of files."""
    sizes = np.array([3, 9, 1, 9, 5])
    assert longest_first(np.array([0, 2, 3, 1, 4]), sizes).tolist() == [3, 1, 4, 0, 2]
    assert longest_first(np.arange(5), sizes).tolist() == [1, 3, 4, 0, 2]


def test_a_batch_says_of_each_task_what_the_plan_says(folder):
    """A task made on a worker from a batch is, step by step, the one of the plan."""
    made = make(folder)
    for some in made.todo():
        batch = some.shape.tasks(some.places.tolist())
        assert [batch.task(i) for i in range(len(batch))] == list(tasks_of(some))


def test_a_thousand_files_are_planned_without_quadratic_work(tmp_path):
    """Every file has one task per pass, in a plan of many files and variations."""
    (tmp_path / "st.py").write_text("def s(b, c):\n    return {'n': 1}\n")
    for i in range(300):
        (tmp_path / f"{i:04}.root").touch()
    variations = {f"v{i}": Variation(tree=f"t{i}") for i in range(4)}
    made = Campaign(
        campaign="c", datasets={"d": Dataset(files=".", tree="t")},
        stages={"a": StageSpec(use="st.py:s"), "b": StageSpec(use="st.py:s", from_="a")}, variations=variations,
    ).at(tmp_path)  # fmt: skip
    assert len(plan(made, {}).tasks) == 300 * 5
