"""What a campaign is: what fits together, and what is refused."""

from __future__ import annotations

import pickle

import pytest
from pydantic import ValidationError

from campaign import Campaign, Dataset, ServerSpec, StageSpec, Variation
from campaign.driver.check import check_models
from campaign.errors import SpecError
from campaign.planning.stage_code import resolve
from campaign.spec.models import ErrorSpec, Origin, ProviderSpec
from campaign.spec.options import check_options
from campaign.util import plugins


def build(**changes):
    given = {
        "campaign": "c",
        "datasets": {
            "mc": {"files": "mc/*.root", "tree": "t", "is_mc": True},
            "data": {"files": "d.root", "tree": "t"},
        },
        "stages": {
            "select": {"use": "s.py:select"},
            "hists": {"use": "s.py:hists", "from": "select"},
            "factors": {"use": "s.py:factors", "reduce": "hists"},
            "second": {"use": "s.py:second", "from": "select", "with": ["factors"]},
        },
    }
    return Campaign.model_validate({**given, **changes})


def stages(**changes):
    given = {
        "select": {"use": "s.py:select"},
        "hists": {"use": "s.py:hists", "from": "select"},
        "factors": {"use": "s.py:factors", "reduce": "hists"},
    }
    return {"stages": {**given, **changes}}


REFUSED = {
    "from an unknown stage": (stages(x={"use": "u", "from": "slect"}), ("stages", "x", "from"), "'slect'.*select"),
    "from a reduce stage": (stages(x={"use": "u", "from": "factors"}), ("stages", "x", "from"), "per-file stages"),
    "from itself": (stages(x={"use": "u", "from": "x"}), ("stages", "x", "from"), "'x'"),
    "reduce of a reduce stage": (stages(x={"use": "u", "reduce": "factors"}), ("stages", "x", "reduce"), "per-file"),
    "reduce of nothing": (stages(x={"use": "u", "reduce": "nope"}), ("stages", "x", "reduce"), "'nope'"),
    "reduce and from": (
        stages(x={"use": "u", "reduce": "hists", "from": "select"}), ("stages", "x", "from"), "no 'from'"
    ),
    "reduce and keep": (stages(x={"use": "u", "reduce": "hists", "keep": True}), ("stages", "x", "keep"), "no 'keep'"),
    "reduce and datasets": (
        stages(x={"use": "u", "reduce": "hists", "datasets": "mc"}), ("stages", "x", "datasets"), "no 'datasets'"
    ),
    "with a per-file stage": (
        stages(x={"use": "u", "with": ["hists"]}), ("stages", "x", "with"), "reduce stages .known: factors"
    ),
    "with an unknown stage": (stages(x={"use": "u", "with": "nope"}), ("stages", "x", "with"), "'nope'"),
    "an unknown dataset": (stages(x={"use": "u", "datasets": ["md"]}), ("stages", "x", "datasets"), "mc, data"),
    "a variation called nominal": ({"variations": {"nominal": {"tree": "u"}}}, ("variations", "nominal"), "without"),
    "a variation of an unknown dataset": (
        {"variations": {"v": {"datasets": ["md"], "tree": "u"}}}, ("variations", "v", "datasets"), "'md'.*mc, data"
    ),
    "a variation of nothing": ({"variations": {"v": {"datasets": ["mc"]}}}, ("variations", "v"), "changes nothing"),
    "two stages that wait for each other": (
        {"stages": {"a": {"use": "u", "from": "b"}, "b": {"use": "u", "from": "a"}}}, ("stages", "a"), "a -> b -> a"
    ),
    "a circle through a frozen value": (
        {"stages": {"a": {"use": "u", "with": "r"}, "r": {"use": "u", "reduce": "a"}}}, ("stages", "a"), "wait for each"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_parts_that_do_not_fit_together_are_refused(case):
    """A reference that leads nowhere, or in a circle, is refused with its key and what there is."""
    changes, key, text = REFUSED[case]
    with pytest.raises(SpecError, match=text) as caught:
        build(**changes)
    assert caught.value.key == key
    assert caught.value.exit_code == 2


NAMES = ["../up", "a/b", ".hidden", "", "-flag", "a\nb", "a b", "a" * 101, "..", "é", "a\x00"]


@pytest.mark.parametrize("where", ["campaign", "datasets", "stages", "variations", "models"])
def test_a_name_cannot_leave_its_folder(where):
    """Names become folders of the run directory: what is a path, hidden or too long is refused everywhere."""
    for name in NAMES:
        changes = {
            "campaign": {"campaign": name},
            "datasets": {"datasets": {name: {"files": "f", "tree": "t"}}},
            "stages": {"stages": {name: {"use": "u"}}},
            "variations": {"variations": {name: {"tree": "u"}}},
            "models": {"servers": {"models": {name: {}}}},
        }
        with pytest.raises(ValidationError, match="a name is made of"):
            build(**changes[where])


@pytest.mark.parametrize(
    "changes",
    [
        {"datasets": {}}, {"stages": {}}, {"datasets": {"mc": {"files": [], "tree": "t"}}}, {"read_rows": 0},
        {"workers": 0}, {"retries": -1}, {"servers": {"models": {}}}, {"servers": {"models": ["m"], "count": 0}},
        {"servers": {"models": {"m": {"batch": 0}}}}, {"servers": {"models": ["m"], "lease_s": 0}},
        {"datasets": {"mc": {"files": "f", "tree": ""}}}, {"stages": {"a": {"use": "u", "datasets": []}}},
        {"variations": {"v": {"datasets": [], "tree": "u"}}}, {"typo": 1},
        {"datasets": {"mc": {"files": "f", "trees": "t"}}},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(changes):
    """Empty lists where something is needed, numbers out of range and unknown keys are refused."""
    with pytest.raises(ValidationError):
        build(**changes)


@pytest.mark.parametrize(
    ("given", "of_1000"), [(0, 0), (7, 7), ("0.5 %", 5), ("0.5%", 5), (" 12 % ", 120), ("0.29 %", 2), ("100 %", 1000)]
)
def test_a_tolerance_is_a_number_or_a_percentage_rounded_down(given, of_1000):
    """Exactly: 0.29 % of 1000 files are two, and of a hundred none."""
    assert ErrorSpec(max_failed_files=given).limit(1000) == of_1000
    assert ErrorSpec(max_failed_files=given).limit(0) == (given if isinstance(given, int) else 0)


@pytest.mark.parametrize("given", ["0.5", "-1 %", "101 %", "%", "a few", "1e2 %", -1, 0.005, True, None, "1 % of 3"])
def test_a_tolerance_that_makes_no_sense_is_refused(given):
    """A number of files or a percentage; nothing is guessed."""
    with pytest.raises(ValueError, match="a number of files, or a percentage"):
        ErrorSpec(max_failed_files=given)


def test_options_stand_inline_or_under_options_but_not_twice():
    """The keys of what a stage, a server kind or a provider names may stand in either place, once."""
    assert StageSpec(use="fill", histograms=1, options={"weight": "w"}).given == {"histograms": 1, "weight": "w"}
    with pytest.raises(ValidationError, match="'weight' stands twice"):
        StageSpec(use="fill", weight="w", options={"weight": "v"})


def test_one_name_may_stand_for_a_list_of_one():
    """Where a list is meant, one string is a list of one; models may be listed without settings."""
    made = build(**stages(x={"use": "u", "with": "factors", "datasets": "mc"}))
    assert made.stages["x"].with_ == ("factors",)
    assert made.datasets["mc"].files == ("mc/*.root",)
    assert set(ServerSpec(models=["a", "b"]).models) == {"a", "b"}
    assert set(ServerSpec(models="a").models) == {"a"}
    assert build(provider="parsl").provider == ProviderSpec(kind="parsl")


def test_python_and_mappings_describe_the_same_campaign():
    """A campaign built of objects equals the one validated from plain data, wherever its paths start."""
    python = Campaign(
        campaign="c",
        datasets={"mc": Dataset(files="mc/*.root", tree="t", is_mc=True), "data": Dataset(files="d.root", tree="t")},
        stages={
            "select": StageSpec(use="s.py:select"),
            "hists": StageSpec(use="s.py:hists", from_="select"),
            "factors": StageSpec(use="s.py:factors", reduce="hists"),
            "second": StageSpec(use="s.py:second", from_="select", with_=("factors",)),
        },
    )
    assert python == build()
    assert python.at("/elsewhere") == build()
    assert python != build(read_rows=7)


def test_a_campaign_cannot_be_changed_and_travels_whole():
    """A campaign is frozen, and pickling keeps it, its folder and where it was written down."""
    made = build().at("/some/where", Origin("c.yaml", {("stages",): 7}))
    with pytest.raises(ValidationError, match="frozen"):
        made.campaign = "other"
    back = pickle.loads(pickle.dumps(made))
    assert back == made
    assert back.base == made.base
    assert back.locate(SpecError("x", key=("stages", "a"))).where == "c.yaml:7: stages.a"


def test_weight_only_is_what_changes_no_input_of_a_model():
    """A variation of the weight alone is weight-only; with a tree, branches or files it is not."""
    assert Variation(weight="w").weight_only
    assert not Variation(weight="w", tree="t").weight_only
    assert not Variation(branches={"a": "b"}).weight_only
    assert not Variation(files="f").weight_only
    assert not Variation(metadata={"k": 1}).weight_only


def test_paths_start_at_the_campaigns_folder(tmp_path):
    """A relative path starts at the campaign's folder, an absolute one and ``~`` stay what they are."""
    made = build().at(tmp_path)
    assert made.path("a/../b.py") == tmp_path.resolve() / "b.py"
    assert made.path("/x/y") == (tmp_path / "/x/y").resolve()
    assert "~" not in str(made.path("~/z"))


# Options of registered things, and models -----------------------------------------------------------------------------


class Kind:
    """Two tensors of one model, as a server kind tells them."""

    @staticmethod
    def tensors(model):
        return ["X"], ["SCORE"]


def infers(model="tagger", inputs="X", output="SCORE", **changes):
    predict = {"use": "infer", "model": model, "inputs": {inputs: ["pt"]}, "outputs": {"score": output}}
    given = {"servers": {"models": ["tagger"]}, **changes}
    return build(stages={"predict": predict}, **given)


@pytest.mark.parametrize(
    ("made", "key", "said"),
    [
        (lambda: infers(servers=None), ("stages", "predict"), "the campaign has no 'servers'"),
        (lambda: infers("taggre"), ("stages", "predict", "model"), "did you mean 'tagger'"),
        (lambda: infers(inputs="Y"), ("stages", "predict", "inputs", "Y"), "none of the inputs of tagger.*known: X"),
        (lambda: infers(output="SCORES"), ("stages", "predict", "outputs", "score"), "did you mean 'SCORE'"),
    ],
)
def test_a_model_input_or_output_that_is_not_there_is_refused(made, key, said):
    """What a stage infers with is held against the pool's models before a server is started."""
    campaign = made()
    with pytest.raises(SpecError, match=said) as caught:
        check_models(campaign, {"predict": resolve(campaign, "predict")}, Kind())
    assert caught.value.key == key
    right = infers()
    check_models(right, {"predict": resolve(right, "predict")}, Kind())


@pytest.mark.parametrize(
    ("group", "owner", "given", "said"),
    [
        (plugins.PROVIDERS, ProviderSpec, {"nope": 1}, "'nope' is not one of the keys here"),
        (plugins.SERVERS, ServerSpec, {"model_repositry": "m"}, "did you mean 'model_repository'"),
        (plugins.SERVERS, ServerSpec, {"model_repository": {"a": 1}}, "found"),
        (plugins.SERVERS, ServerSpec, {"launcher": "nope"}, "one of 'embedded'.* is needed; found 'nope'"),
    ],
)
def test_options_of_a_kind_are_held_against_what_it_publishes(group, owner, given, said):
    """A wrong, missing or unknown option of a provider or server kind is an error at its key, with those there are."""
    cls = plugins.get(group, "local" if group == plugins.PROVIDERS else "triton")
    with pytest.raises(SpecError, match=said) as caught:
        check_options(cls.Options, given, ("here",), owner)
    assert caught.value.key[0] == "here"


@pytest.mark.parametrize("group", [plugins.PROVIDERS, plugins.SERVERS, plugins.STAGES])
def test_an_unregistered_name_lists_the_registered_ones(group):
    """A name that is not registered is refused with the nearest and with all that are."""
    known = plugins.names(group)
    with pytest.raises(SpecError, match=f"did you mean '{known[0]}'.*{', '.join(known)}"):
        plugins.get(group, known[0] + "x")
