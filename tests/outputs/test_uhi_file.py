"""The `uhi` files: boost-histogram and hist read them without campaign, bit for bit."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import boost_histogram as bh
import hist
import numpy as np
import pytest
import uhi.io.zip
from hypothesis import given, settings

from campaign.histogram.histogram import Histogram
from campaign.outputs.histograms import write_histograms
from campaign.outputs.merge import export
from campaign.outputs.merged import Merged, fingerprint
from campaign.outputs.uhi_file import write_uhi
from tests.histogram.test_axes import histograms
from tests.histogram.test_histogram import FLOAT_AXES


def read(path: Path, name: str) -> dict[str, Any]:
    """One histogram of a file, as the `uhi` package reads it."""
    with zipfile.ZipFile(path) as file:
        return uhi.io.zip.read(file, name)


def bits(h: Any) -> tuple[bytes, bytes]:
    """Values and variances of every bin, flow bins included."""
    view = h.view(flow=True)
    return np.ascontiguousarray(view["value"]).tobytes(), np.ascontiguousarray(view["variance"]).tobytes()


def assert_same(made: Histogram, path: Path, name: str) -> None:
    """What both libraries read has the axes and the bits of the histogram."""
    wanted = made.to_hist()
    for back in (bh.Histogram(read(path, name)), hist.Hist(read(path, name))):
        assert back.storage_type.__name__ == "Weight"
        assert bits(back) == bits(wanted)
        for axis, other in zip(back.axes, wanted.axes, strict=True):
            assert axis.extent == other.extent
            assert list(axis) == list(other)
            assert np.array_equal(axis.edges, other.edges)
            assert (axis.__dict__.get("name", ""), axis.__dict__.get("label") or "") == (
                other.name, other.__dict__.get("label", ""),
            )  # fmt: skip
    assert [a.name for a in hist.Hist(read(path, name)).axes] == [a.name for a in wanted.axes]


@given(made=histograms())
@settings(max_examples=60)
def test_any_histogram_is_read_back_bit_for_bit(made: Histogram, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every kind of axis, weights that are no numbers among them; an axis without categories is named as left out."""
    path, left_out = write_uhi({"h": made.to_hist()}, tmp_path_factory.mktemp("uhi") / "nominal.hists.npz")
    if left_out:
        assert any(not axis.size for axis in made.axes)
    else:
        assert_same(made, path, "h")


@pytest.mark.parametrize("axis", FLOAT_AXES, ids=repr)
def test_every_axis_of_numbers_keeps_its_edges(axis: Any, tmp_path: Path) -> None:
    """Limits, transforms and flow bins are those of the axis, to the last bit."""
    made = Histogram(axis, name="pt")
    made.fill(np.linspace(0.31, 2.9, 300), weight=np.linspace(-1.0, 3.0, 300) / 3)
    path, left_out = write_uhi({"h": made.to_hist()}, tmp_path / "nominal.hists.npz")
    assert not left_out
    assert_same(made, path, "h")


def test_a_process_without_campaign_reads_an_output(tmp_path: Path) -> None:
    """An exported output is read where campaign cannot be imported; equal contents give equal bytes."""
    made = Histogram(
        hist.axis.StrCategory(["a", "b"], name="option"), hist.axis.Regular(4, 0, 1, name="x", label="x [GeV]")
    )
    made.fill(["a", "b", "a"], [0.1, 0.3, 7.0], weight=[0.1, 0.2, 0.3])
    path = tmp_path / "nominal.hists.npz"
    write_histograms({"folder/pt": made, "eta": made}, path)
    merged = export(Merged("s/d/nominal", "histograms", path, ""))
    assert merged.uhi == tmp_path / "nominal.uhi.zip"
    first = merged.uhi.read_bytes()
    merged = export(merged)
    assert merged.uhi is not None
    assert merged.uhi.read_bytes() == first
    code = (
        "import sys, zipfile; sys.modules['campaign'] = None\n"
        "import boost_histogram as bh, uhi.io.zip\n"
        f"file = zipfile.ZipFile({str(merged.uhi)!r})\n"
        "h = bh.Histogram(uhi.io.zip.read(file, 'folder/pt'))\n"
        "print(h.view(flow=True)['value'].tobytes().hex(), h.view(flow=True)['variance'].tobytes().hex())\n"
        "print(sorted(n for n in file.namelist() if n.endswith('.json')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, names = done.stdout.splitlines()
    assert said.split() == [part.hex() for part in bits(made.to_hist())]
    assert names == "['eta.json', 'folder/pt.json']"
    assert fingerprint(merged) == merged.files
    merged.uhi.unlink()
    assert fingerprint(merged) != merged.files, "a run that goes on makes a lost file again"
    merged.remove()
    assert not list(tmp_path.iterdir())
