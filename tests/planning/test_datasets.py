"""Files of a dataset: found, sorted, identified, and given their metadata."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import pickle
import re
import threading

import pytest

from campaign import Campaign
from campaign.errors import SpecError
from campaign.planning.datasets import File, Files, expand
from campaign.spec.models import Origin


@pytest.fixture
def tree(tmp_path):
    """Some files in folders, and a campaign whose paths start there."""
    for name in (
        "mc/b_1.root",
        "mc/a_2.root",
        "mc/a_10.root",
        "mc/notes.md",
        "mc/deep/x.root",
        "data/d.root",
        "data/[x].root",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def campaign(base, **origin):
    made = Campaign.model_validate(
        {"campaign": "c", "datasets": {"mc": {"files": "x", "tree": "t"}}, "stages": {"s": {"use": "u"}}}
    )
    return made.at(base, Origin(**origin) if origin else None)


def found(base, *patterns, metadata=None):
    return expand(campaign(base), patterns, metadata, ("datasets", "mc", "files"))


def names(base, *patterns):
    return [f.url.removeprefix(f"{base}/") for f in found(base, *patterns)]


def refused(base, *patterns, metadata=None):
    with pytest.raises(SpecError) as caught:
        found(base, *patterns, metadata=metadata)
    return caught.value


def test_globs_lists_and_directories_mean_files_in_canonical_order(tree):
    """Whatever the pattern and the order of patterns, files come absolute and sorted by name."""
    assert names(tree, "mc/*.root") == ["mc/a_10.root", "mc/a_2.root", "mc/b_1.root"]
    assert names(tree, "mc/b_1.root", "mc/a_2.root") == names(tree, "mc/a_2.root", "mc/b_1.root")
    assert names(tree, "mc/**/*.root") == ["mc/a_10.root", "mc/a_2.root", "mc/b_1.root", "mc/deep/x.root"]
    assert names(tree, "mc") == ["mc/a_10.root", "mc/a_2.root", "mc/b_1.root"]
    assert names(tree, "mc/../data/d.root", f"{tree}/mc/deep") == ["data/d.root", "mc/deep/x.root"]
    assert names(tree, "data/[x].root") == ["data/[x].root"]


def test_files_are_packed_and_come_back(tree):
    """By place, slice or pick, alone or after a pickle, a file is what it was; odd stamps and metadata too."""
    told = [
        (f"/d/{i}\udcff.root", i, stamp, f'{{"i":{i % 2}}}')
        for i, stamp in enumerate(("1", "", "0", "07", "W/x", "9" * 18, "9" * 19, "9" * 25, "-3", "²"))
    ]
    files = [File(*one) for one in told]
    packed = Files(iter(told))
    assert list(packed) == files == packed[:]
    assert [packed[-1], packed[3]] == [files[-1], files[3]]
    assert list(packed.urls()) == [f.url for f in files]
    assert len(set(packed.identities())) == len(files)
    assert list(packed.pick([3]).identities()) == [list(packed.identities())[3]]
    places = [7, 0, 4, 9, 4]
    again = pickle.loads(pickle.dumps(packed.pick(places)))
    assert list(again) == [files[i] for i in places]
    assert list(packed.pick([])) == []
    with pytest.raises(IndexError):
        packed[len(files)]


def test_a_home_directory_is_expanded(tree, monkeypatch):
    """``~`` means the user's home."""
    monkeypatch.setenv("HOME", str(tree))
    assert names(tree / "mc", "~/data/d.root")[0].endswith("data/d.root")


def test_a_text_file_lists_names_relative_to_itself(tree):
    """A ``.txt`` file names files, globs, directories and further lists; paths start where the list lies."""
    (tree / "lists").mkdir()
    (tree / "lists/all.txt").write_text("# all of it\n../mc/a_*.root\n\ninner/more.txt   # nested\n")
    (tree / "lists/inner").mkdir()
    (tree / "lists/inner/more.txt").write_text("../../data/d.root\n")
    assert names(tree, "lists/all.txt") == ["data/d.root", "mc/a_10.root", "mc/a_2.root"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("mc/c_*.root", "no file matches .*mc/c_"), ("mc/c.root", "there is no file .*mc/c.root"),
        ("empty", "directory .*empty holds no"), ("none.txt", "none.txt names no file"),
        ("wrong.txt", "wrong.txt:2: there is no file .*nope.root"), ("bytes.txt", "bytes.txt cannot be read"),
    ],
)  # fmt: skip
def test_a_pattern_that_means_no_file_is_refused(tree, pattern, said):
    """Nothing found is an error that names the pattern, and in a list its line; a remedy stands below."""
    (tree / "empty").mkdir()
    (tree / "none.txt").write_text("# nothing yet\n")
    (tree / "wrong.txt").write_text("mc/b_1.root\nnope.root\n")
    (tree / "bytes.txt").write_bytes(b"\xff\xfe")
    error = refused(tree, pattern)
    assert error.key == ("datasets", "mc", "files")
    assert re.search(said, str(error))


def test_a_file_named_twice_is_refused(tree):
    """A file that two patterns mean would count twice: it is refused by name."""
    assert "mc/a_2.root stands twice" in str(refused(tree, "mc/*.root", "mc/a_2.root"))


def test_a_missing_file_is_told_with_file_and_line(tree):
    """For a campaign from a file the error carries the line of the key."""
    made = campaign(tree, file="c.yaml", lines={("datasets", "mc", "files"): 4})
    with pytest.raises(SpecError) as caught:
        expand(made, ["nope.root"], None, ("datasets", "mc", "files"))
    assert str(caught.value).startswith("c.yaml:4: datasets.mc.files: there is no file")


def test_identity_changes_when_the_file_does(tree):
    """Size or modification time changes the identity; reading the file, or another file, does not."""
    path = tree / "mc/b_1.root"
    before = found(tree, "mc/b_1.root")[0]
    path.read_bytes()
    (tree / "mc/new.root").write_bytes(b"other")
    assert found(tree, "mc/b_1.root")[0] == before
    os.utime(path, ns=(1, 1))
    touched = found(tree, "mc/b_1.root")[0]
    assert touched.identity != before.identity
    path.write_bytes(b"longer than before")
    os.utime(path, ns=(1, 1))
    assert found(tree, "mc/b_1.root")[0].identity != touched.identity


# Metadata -------------------------------------------------------------------------------------------------------------


def test_metadata_of_the_dataset_is_that_of_every_file(tree):
    """A mapping given for the dataset reaches each file; without one there is none."""
    assert [f.metadata for f in found(tree, "mc/a_*.root", metadata={"xs": 1.5})] == [{"xs": 1.5}] * 2
    assert found(tree, "mc/b_1.root")[0].metadata == {}


def test_a_side_file_gives_metadata_by_pattern(tree):
    """Patterns match the path from the side file's folder or the name alone; what several give is joined."""
    (tree / "meta").mkdir()
    (tree / "meta/samples.yaml").write_text(
        '"*.root": {period: A}\n"a_*": {slice: 1}\n"../mc/b_*.root": {slice: 2, n: [1, x]}\n'
    )
    got = {f.url.rpartition("/")[2]: f.metadata for f in found(tree, "mc/*.root", metadata="meta/samples.yaml")}
    assert got == {
        "a_10.root": {"period": "A", "slice": 1},
        "a_2.root": {"period": "A", "slice": 1},
        "b_1.root": {"period": "A", "slice": 2, "n": [1, "x"]},
    }


def test_a_changed_side_file_is_read_anew(tree):
    """Metadata follow the side file as it is now."""
    path = tree / "s.yaml"
    path.write_text('"*": {xs: 1}\n')
    assert found(tree, "mc/b_1.root", metadata="s.yaml")[0].metadata == {"xs": 1}
    path.write_text('"*": {xs: 22}\n')
    os.utime(path, ns=(7, 7))
    assert found(tree, "mc/b_1.root", metadata="s.yaml")[0].metadata == {"xs": 22}


def test_a_pattern_without_values_is_a_pattern(tree):
    """A file may match a pattern that gives it nothing."""
    (tree / "s.yaml").write_text('"*": {}\n')
    assert found(tree, "mc/b_1.root", metadata="s.yaml")[0].metadata == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"a_*": {xs: 1}\n', "has no pattern for .*b_1.root"),
        ('"*": {xs: 1}\n"b_*": {xs: 2}\n', "two patterns give .*b_1.root another 'xs'"),
        ("- a\n", "not a mapping"), ('"*": 3\n', "not a mapping"), ("1: {xs: 1}\n", "pattern 1 is no text"),
        ('"*": {xs: .nan}\n', "Out of range|nan"), ('"*": {day: 2020-01-01}\n', "may be a date or text"),
        ('"*": {xs: 1\n', "s.yaml:1"), ('"*": {xs: 1, xs: 2}\n', "stands twice"),
    ],
)  # fmt: skip
def test_a_wrong_side_file_is_refused(tree, text, said):
    """A file without a pattern, a conflict, or anything but plain data in the side file is named."""
    (tree / "s.yaml").write_text(text)
    with pytest.raises(SpecError, match=said):
        found(tree, "mc/b_1.root", metadata="s.yaml")


def test_a_missing_side_file_is_named(tree):
    """A side file that is not there is an error at the dataset's ``metadata``."""
    error = refused(tree, "mc/b_1.root", metadata="nope.yaml")
    assert error.key == ("datasets", "mc", "metadata")
    assert "nope.yaml" in str(error)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
def test_metadata_that_has_no_canonical_form_is_refused(tree, value):
    """Metadata of a dataset are plain data: what has no JSON is refused, not passed on."""
    assert refused(tree, "mc/b_1.root", metadata={"x": value}).key[:3] == ("datasets", "mc", "metadata")


# URLs -----------------------------------------------------------------------------------------------------------------


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        if "broken" in self.path:
            self.send_error(500)
        else:
            super().do_GET()

    do_HEAD = do_GET  # noqa: N815  http.server names it


@contextlib.contextmanager
def served(folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_url_is_a_file_with_size_and_stamp(tree):
    """Over HTTP the server's size and date identify a file, and change when it does."""
    with served(tree) as url:
        before = found(tree, f"{url}/mc/b_1.root")[0]
        assert (before.url, before.size) == (f"{url}/mc/b_1.root", len("mc/b_1.root"))
        assert before.stamp
        os.utime(tree / "mc/b_1.root", (1e9, 1e9))
        assert found(tree, f"{url}/mc/b_1.root")[0].identity != before.identity


def test_a_side_file_knows_urls_by_name(tree):
    """A pattern of the side file matches the last part of a URL, or all of it."""
    (tree / "s.yaml").write_text('"b_*": {xs: 1}\n"http://*/mc/*": {mc: true}\n')
    with served(tree) as url:
        assert found(tree, f"{url}/mc/b_1.root", metadata="s.yaml")[0].metadata == {"xs": 1, "mc": True}


def test_a_link_to_nothing_is_refused_by_name(tree):
    """A link whose file is gone, in a folder of files, is an error with its path and what to do."""
    (tree / "mc/zz.root").symlink_to("/nowhere/z.root")
    error = refused(tree, "mc")
    assert f"{tree / 'mc/zz.root'} is a link to a file that is not there" in str(error)
    assert "mend it" in str(error)


def test_a_list_may_hold_urls(tree):
    """A ``.txt`` file names URLs beside paths."""
    with served(tree) as url:
        (tree / "l.txt").write_text(f"{url}/mc/b_1.root\ndata/d.root\n")
        assert [f.size for f in found(tree, "l.txt")] == [len("data/d.root"), len("mc/b_1.root")]


@pytest.mark.parametrize("path", ["mc/nope.root", "broken.root", "broken/*.root", "mc/c_*.root"])
def test_a_url_that_gives_nothing_is_refused(tree, path):
    """A missing file, a failing server and a pattern without files over HTTP are errors with the URL."""
    with served(tree) as url:
        assert f"{url}/{path}" in str(refused(tree, f"{url}/{path}"))


def test_a_server_that_is_not_there_is_refused(tree):
    """No server is an error with the URL."""
    with served(tree) as url:
        pass
    assert url in str(refused(tree, f"{url}/mc/b_1.root"))


def test_an_xrootd_url_is_taken_as_it_is(tree):
    """``root://`` files are not looked at one by one: uproot opens them when they are read."""
    url = "root://host.invalid//store/a.root"
    assert [(f.url, f.size, f.stamp) for f in found(tree, url)] == [(url, 0, "")]


def test_a_hash_inside_a_name_is_part_of_it(tmp_path):
    """In a list of names only a ``#`` at the start of a line or after a space begins a comment."""
    for name in ("run#1.root", "run#2.root"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("# all\nrun#1.root\n  run#2.root  # the second\n\t# none\n")
    assert names(tmp_path, "list.txt") == ["run#1.root", "run#2.root"]
