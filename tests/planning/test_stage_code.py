"""Stages by name: found, checked, carried to workers, and hashed by the code they can reach."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from campaign import Campaign, Dataset, StageSpec
from campaign.errors import SpecError
from campaign.planning.stage_code import load_file, resolve


@pytest.fixture(autouse=True)
def own_modules():
    """What a test imports is forgotten after it."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("campaign_user_") or name in (
            "helpers",
            "userpkg",
            "userpkg.stages",
            "userpkg.tools",
            "mine",
        ):
            del sys.modules[name]
    sys.path[:] = path


def campaign(folder, use, **keys):
    stages = {"s": StageSpec(use=use, **keys)}
    return Campaign(campaign="c", datasets={"d": Dataset(files="f", tree="t")}, stages=stages).at(folder)


def code(folder, use, **keys):
    return resolve(campaign(folder, use, **keys), "s")


def write(folder, name="stages.py", text=""):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


PLAIN = """
def select(batch, ctx):
    return {"x": batch, "cut": ctx.options.get("cut")}
"""

CLASS = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Select:
    cut: float
    name: str = "pt"

    def __post_init__(self):
        if self.cut < 0:
            raise ValueError("a cut is not negative")

    def __call__(self, batch, ctx):
        return (self.cut, self.name, batch)
"""


# Found and loaded -----------------------------------------------------------------------------------------------------


def test_a_registered_name_is_its_class(tmp_path):
    """A registered stage is made of its options."""
    made = code(tmp_path, "fill", histograms={"h": {"x": {"bins": 2, "range": [0, 1]}}}).load()
    assert made.histograms == {"h": {"x": {"bins": 2, "range": [0, 1]}}}


def test_a_function_of_a_file_called_stages_works(tmp_path):
    """``stages.py:select`` beside the campaign file is the user's, although ``campaign.stages`` exists."""
    write(tmp_path, "stages.py", PLAIN)
    stage = code(tmp_path, "stages.py:select", options={"cut": 3}).load()
    assert stage(7, SimpleNamespace(options={"cut": 3})) == {"x": 7, "cut": 3}


def test_a_dataclass_of_a_file_takes_its_options(tmp_path):
    """A class is made once with its keys, wherever in the spec they stand."""
    write(tmp_path, text=CLASS)
    assert code(tmp_path, "stages.py:Select", cut=2.5).load()(1, None) == (2.5, "pt", 1)
    assert code(tmp_path, "stages.py:Select", cut=2.5, options={"name": "eta"}).load()(1, None) == (2.5, "eta", 1)


def test_a_module_beside_the_campaign_file_works(tmp_path):
    """``package.module:Name`` is found where Python finds it, and beside the campaign file."""
    write(tmp_path, "userpkg/__init__.py")
    write(tmp_path, "userpkg/stages.py", PLAIN)
    made = code(tmp_path, "userpkg.stages:select")
    assert made.load()(1, SimpleNamespace(options={})) == {"x": 1, "cut": None}
    assert elsewhere(made, tmp_path / "other") == "{'x': 1, 'cut': None}"


def elsewhere(made, folder):
    """What the stage returns for batch 1 in a fresh process with another current folder, as a worker has it."""
    folder.mkdir(exist_ok=True)
    (folder / "code.pickle").write_bytes(pickle.dumps(made))
    script = """
import pickle, sys, types
with open("code.pickle", "rb") as stream:
    stage = pickle.load(stream).load()
print(stage(1, types.SimpleNamespace(options={})))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_stage_finds_the_modules_beside_it_on_a_worker(tmp_path):
    """A file of stages imports its neighbours, also in a worker whose current folder is another."""
    write(tmp_path / "a", "helpers.py", "def twice(x):\n    return 2 * x\n")
    write(tmp_path / "a", "stages.py", "from helpers import twice\n\n\ndef s(batch, ctx):\n    return twice(batch)\n")
    assert elsewhere(code(tmp_path / "a", "stages.py:s"), tmp_path / "b") == "2"


SCRIPT = """
import pickle, sys
from campaign import Campaign, Dataset, StageSpec
from campaign.planning.stage_code import resolve
from helpers import twice

OFFSET = 5

def local(batch, ctx):
    return twice(batch) + OFFSET

made = Campaign(campaign="c", datasets={"d": Dataset(files="f", tree="t")}, stages={"s": StageSpec(use=local)})
with open(sys.argv[1], "wb") as stream:
    pickle.dump(resolve(made, "s"), stream)
"""


def test_a_function_of_the_script_travels_by_value(tmp_path):
    """A function of ``__main__`` reaches a worker with its globals, and the modules beside the script."""
    write(tmp_path / "a", "helpers.py", "def twice(x):\n    return 2 * x\n")
    script = write(tmp_path / "a", "script.py", SCRIPT)
    subprocess.run([sys.executable, str(script), str(tmp_path / "out")], cwd=tmp_path, check=True)
    made = pickle.loads((tmp_path / "out").read_bytes())
    assert made.pickled
    assert elsewhere(made, tmp_path / "b") == "7"


def test_python_functions_closures_objects_and_partials_are_stages(tmp_path):
    """Whatever can be called is a stage: a local function, a lambda, a bound object, a partial."""

    def outer(cut):
        def stage(batch, ctx):
            return batch * cut

        return stage

    @dataclass
    class Times:
        by: int

        def __call__(self, batch, ctx):
            return batch * self.by

    for use in (outer(3), lambda batch, ctx: batch * 3, Times(3), functools.partial(lambda n, b, c: b * n, 3)):
        assert elsewhere(code(tmp_path, use), tmp_path / "w") == "3"


def test_a_python_object_from_a_module_is_the_same_stage_as_its_name(tmp_path, monkeypatch):
    """A function imported from a file and the same one named ``file.py:Name`` have one digest and one file."""
    write(tmp_path, "mine.py", PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    import mine

    by_object, by_name = code(tmp_path, mine.select), code(tmp_path, "mine.py:select")
    assert (by_object.digest, by_object.file, by_object.target) == (by_name.digest, by_name.file, by_name.target)
    assert not by_object.pickled


def test_a_changed_file_is_imported_anew(tmp_path):
    """In a process that lives long the stage is what the file says now."""
    path = write(tmp_path, text="def s(batch, ctx):\n    return 1\n")
    assert load_file(path).s(0, 0) == 1
    write(tmp_path, text="def s(batch, ctx):\n    return 1000\n")
    assert load_file(path).s(0, 0) == 1000


# Refused --------------------------------------------------------------------------------------------------------------

REFUSED = {
    "unknown registered name": ("fil", {}, "'fil' is not one of the stages; did you mean 'fill'"),
    "no such file": ("nope.py:s", {}, "there is no file .*nope.py"),
    "a file without a name": ("stages.py", {}, "names no stage in the file"),
    "no such function": ("stages.py:selct", {}, "'selct' is none of .*did you mean 'select'"),
    "not callable": ("stages.py:NUMBER", {}, "is a int, not a function"),
    "objects that cannot be called": ("stages.py:Empty", {}, "objects of stages.py:Empty cannot be called"),
    "no such module": ("no_such_module_x:s", {}, "cannot be imported: ModuleNotFoundError"),
    "a syntax error": ("syntax.py:s", {}, r"cannot be imported \(line 2\): SyntaxError"),
    "an error on import": ("raises.py:s", {}, "cannot be imported: ZeroDivisionError"),
    "an exit on import": ("exits.py:s", {}, "cannot be imported: SystemExit"),
    "unknown option": ("stages.py:Select", {"cut": 1, "nme": 2}, "'nme' is none of .*did you mean 'name'"),
    "missing option": ("stages.py:Select", {}, "needs the key 'cut'"),
    "an option it refuses": ("stages.py:Select", {"cut": -1}, "refuses its options: a cut is not negative"),
    "an option of the wrong type": ("stages.py:Select", {"cut": "x"}, "refuses its options: '<' not supported"),
    "an inline option of a function": ("stages.py:select", {"cut": 1}, "'cut' is not one of the keys of a stage"),
    "a wrong histogram": ("fill", {"histograms": {"h": {"x": {"bin": 3}}}}, "histogram h, axis x: found the keys"),
    "no histograms": ("fill", {"histograms": [1]}, "refuses its options"),
    "what is no stage": ("read", {}, "objects of read cannot be called"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_stage_is_refused_with_its_key(tmp_path, case):
    """A stage that is not there, does not load or refuses its options is one error that names key and cause."""
    use, keys, said = REFUSED[case]
    write(tmp_path, text=CLASS + PLAIN + "\nNUMBER = 3\n\n\nclass Empty:\n    pass\n")
    write(tmp_path, "syntax.py", "x = 1\ndef s(:\n")
    write(tmp_path, "raises.py", "1 / 0\n")
    write(tmp_path, "exits.py", "import sys\nsys.exit(0)\n")
    with pytest.raises(SpecError, match=said) as caught:
        code(tmp_path, use, **keys)
    assert caught.value.key[:2] == ("stages", "s")


def test_a_function_that_cannot_travel_is_refused(tmp_path):
    """A stage that holds an open file is refused when it is planned, not when a worker asks for it."""
    with (tmp_path / "f").open("w") as stream, pytest.raises(SpecError, match="cannot travel to the workers"):
        code(tmp_path, functools.partial(lambda s, batch, ctx: batch, stream))


def test_any_keys_are_options_of_a_class_that_takes_any(tmp_path):
    """A class with ``**options`` takes every key."""
    init = "    def __init__(self, **o):\n        self.o = o\n"
    write(tmp_path, text=f"class S:\n{init}\n    def __call__(self, b, c):\n        return self.o\n")
    assert code(tmp_path, "stages.py:S", a=1, b=2).load()(0, 0) == {"a": 1, "b": 2}


# The digest of files --------------------------------------------------------------------------------------------------

BASE = '''
"""Stages."""
import numpy as np

import tools
from helpers import scale, unused

try:
    from fallback import other
except ImportError:
    other = None

LOW = 20
HIGH = LOW + 60


def cut(batch):
    return batch > LOW


class Base:
    def shared(self):
        return 1


class Stage(Base):
    """A stage."""

    def __call__(self, batch, ctx):
        return self.shared()


def select(batch, ctx):
    """Select."""
    from lazily import late

    return scale(batch[cut(batch)]) + tools.one() + other() + late()


def else_where(batch, ctx):
    return HIGH
'''

HELPERS = """
FACTOR = 1000


def deep(x):
    return x / FACTOR


def scale(x):
    return deep(x)


def unused(x):
    return x
"""


@pytest.fixture
def files(tmp_path):
    write(tmp_path, "stages.py", BASE)
    write(tmp_path, "helpers.py", HELPERS)
    write(tmp_path, "tools.py", "def one():\n    return 1\n")
    write(tmp_path, "lazily.py", "def late():\n    return 1\n")
    write(tmp_path, "fallback.py", "def other():\n    return 1\n")
    yield tmp_path
    for name in ("helpers", "tools", "lazily", "fallback"):
        sys.modules.pop(name, None)


def digests(folder):
    return {name: code(folder, f"stages.py:{name}").digest for name in ("select", "else_where", "Stage")}


EDITS = {
    # file, what, by what: the stages whose digest changes
    "its own body": ("stages.py", "scale(batch[", "scale(1 * batch[", {"select"}),
    "a helper it calls": ("stages.py", "batch > LOW", "batch >= LOW", {"select"}),
    "a constant of a helper": ("stages.py", "LOW = 20", "LOW = 21", {"select", "else_where"}),
    "a constant made from another": ("stages.py", "LOW + 60", "LOW + 61", {"else_where"}),
    "a base class": ("stages.py", "        return 1\n", "        return 2\n", {"Stage"}),
    "a helper in another file": ("helpers.py", "return deep(x)", "return 2 * deep(x)", {"select"}),
    "a helper of that helper": ("helpers.py", "x / FACTOR", "x * FACTOR", {"select"}),
    "a constant in another file": ("helpers.py", "FACTOR = 1000", "FACTOR = 1024", {"select"}),
    "a module imported whole": ("tools.py", "return 1", "return 2", {"select"}),
    "a module imported inside the stage": ("lazily.py", "return 1", "return 2", {"select"}),
    "a module imported inside a try": ("fallback.py", "return 1", "return 2", {"select"}),
    "a name it imports and does not use": ("helpers.py", "    return x\n", "    return -x\n", set()),
    "a new function": ("stages.py", "def cut", "def new():\n    return 1\n\n\ndef cut", set()),
    "a comment": ("stages.py", "LOW = 20", "LOW = 20  # GeV", set()),
    "docstrings": ("stages.py", '"""Select."""', '"""Select jets."""', set()),
    "layout": ("stages.py", "return batch > LOW", "return (\n        batch > LOW\n    )", set()),
    "a comment in another file": ("helpers.py", "def deep", "# deep\ndef deep", set()),
}


@pytest.mark.parametrize("case", EDITS)
def test_the_digest_is_of_the_code_that_is_reached(files, case):
    """The digest changes with a stage's code, its helpers and constants, in other files too; and with nothing else."""
    name, old, new, stages = EDITS[case]
    before = digests(files)
    text = (files / name).read_text()
    assert old in text
    write(files, name, text.replace(old, new))
    after = digests(files)
    assert {s for s in before if before[s] != after[s]} == stages


@pytest.mark.parametrize("statement", ["from .tools import one", "from . import tools", "from userpkg.tools import one",
                                       "import userpkg.tools", "from userpkg import tools"])  # fmt: skip
def test_modules_of_the_users_package_count(tmp_path, statement):
    """Relative and absolute imports inside the user's package lead to the code that is hashed."""
    write(tmp_path, "userpkg/__init__.py")
    write(tmp_path, "userpkg/tools.py", "def one():\n    return 1\n")
    bound = {"one": "one", "tools": "tools", "userpkg.tools": "userpkg"}[statement.split()[-1]]
    write(tmp_path, "userpkg/stages.py", f"{statement}\n\n\ndef s(batch, ctx):\n    return {bound}\n")
    before = code(tmp_path, "userpkg.stages:s").digest
    write(tmp_path, "userpkg/tools.py", "def one():\n    return 2\n")
    assert code(tmp_path, "userpkg.stages:s").digest != before


def test_a_decorated_function_is_hashed_by_its_own_source(tmp_path):
    """A wrapper from an installed library does not hide the function behind it."""
    text = "import functools\n\n\n@functools.lru_cache\ndef s(batch, ctx):\n    return 1\n"
    write(tmp_path, text=text)
    before = code(tmp_path, "stages.py:s").digest
    write(tmp_path, text=text.replace("return 1", "return 2"))
    assert code(tmp_path, "stages.py:s").digest != before


def test_stages_that_come_with_campaign_count_by_its_version(tmp_path):
    """A registered stage's digest does not depend on how or where campaign is installed."""
    made = code(tmp_path, "infer", model="m", inputs={"X": "x"}, outputs={"y": "Y"})
    assert made.digest == code(tmp_path / "x", "infer", model="n", inputs={}, outputs={}).digest
    assert not made.uses_servers


def test_code_that_mentions_servers_uses_them(files):
    """A stage whose helper asks the servers is known to ask them; a docstring does not count."""
    assert not code(files, "stages.py:select").uses_servers
    write(files, "tools.py", 'def one():\n    """servers"""\n    return 1\n')
    assert not code(files, "stages.py:select").uses_servers
    write(files, "tools.py", "def one(ctx=None):\n    return ctx.servers.infer('m', {})\n")
    assert code(files, "stages.py:select").uses_servers


# The digest of objects ------------------------------------------------------------------------------------------------


def defined(text, name="s"):
    """A function of ``__main__`` that no file holds, as a notebook's cells define them."""
    scope = {"__name__": "__main__"}
    exec(compile(text, "<cell>", "exec"), scope)
    return scope[name]


CELL = """
LIMIT = 3
NAMES = {'a', 'b', 'c', 'd'}
def helper(x):
    return x < LIMIT
def s(batch, ctx):
    return helper(batch) and batch in NAMES
"""


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("LIMIT = 3", "LIMIT = 4", True), ("x < LIMIT", "x <= LIMIT", True), ("'d'}", "'e'}", True),
        ("helper(batch) and", "helper(batch + 1) and", True), ("LIMIT = 3", "LIMIT = 3  # why", False),
        ("def s(batch, ctx):\n", "def s(batch, ctx):\n    '''Select.'''\n", False),
        ("LIMIT = 3", "OTHER = 1\nLIMIT = 3", False),
    ],
)  # fmt: skip
def test_a_function_without_a_file_is_hashed_by_what_it_is(tmp_path, old, new, changes):
    """Of a function defined in a notebook count its code, its helpers and the values of globals, not its texts."""
    assert old in CELL
    before, after = (code(tmp_path, defined(text)).digest for text in (CELL, CELL.replace(old, new)))
    assert (before != after) == changes


OBJECTS = """
from dataclasses import dataclass
import functools
def make(cut):
    def stage(batch, ctx):
        return batch > cut
    return stage
@dataclass
class Stage:
    cut: float
    extra: float = 1.0
    def __call__(self, batch, ctx):
        return batch > self.cut
def three(n, batch, ctx):
    return n
pairs = {
    "constants": ((lambda b, c: b * 2), (lambda b, c: b * 3)),
    "names": ((lambda b, c: b.pt), (lambda b, c: b.eta)),
    "closures": (make(3), make(4)),
    "objects": (Stage(3), Stage(4)),
    "partials": (functools.partial(three, 1), functools.partial(three, 2)),
    "classes": (Stage, type("Stage", (Stage,), {"extra": 2.0})),
    "nested code": ((lambda b, c: [x * 2 for x in b]), (lambda b, c: [x * 3 for x in b])),
}
"""


@pytest.mark.parametrize("kind", ["constants", "names", "closures", "objects", "partials", "classes", "nested code"])
def test_objects_that_differ_in_anything_have_different_digests(tmp_path, kind):
    """Constants, attribute names, captured values, fields and arguments tell objects apart; equal ones are equal."""
    options = {"cut": 1.0} if kind == "classes" else {}
    one, other = (code(tmp_path, use, **options).digest for use in defined(OBJECTS, "pairs")[kind])
    again, _ = (code(tmp_path, use, **options).digest for use in defined(OBJECTS, "pairs")[kind])
    assert one != other
    assert one == again


def test_the_digest_of_a_cell_is_the_same_in_every_process(tmp_path):
    """Sets and dictionaries of text do not make the digest depend on the process: a run can be resumed."""
    script = f"""
import sys
from campaign import Campaign, Dataset, StageSpec
from campaign.planning.stage_code import resolve
exec({CELL!r})
class Empty:
    def __call__(self, batch, ctx):
        return s(batch, ctx)
class Slots:
    __slots__ = ("a",)
    def __call__(self, batch, ctx):
        return self.a
slots = Slots()
slots.a = {{"x", "y", "z"}}
for use in (s, Empty(), slots, lambda b, c: s(b, c)):
    made = Campaign(campaign="c", datasets={{"d": Dataset(files="f", tree="t")}}, stages={{"s": StageSpec(use=use)}})
    print(resolve(made, "s").digest)
"""
    found = {
        subprocess.run([sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, cwd=tmp_path, check=True,
                       capture_output=True, text=True).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1
    assert len(set(found.pop().split())) == 4
