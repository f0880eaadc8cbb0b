"""Frozen values: kept with every bit, hashed, read-only."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from campaign.errors import FrozenChanged, OutputError
from campaign.storage.frozen_values import freeze, thaw

DTYPES = st.sampled_from(["?", "i1", "u1", "<i4", ">i4", "<u8", "<i8", "f2", "<f4", ">f4", "<f8", ">f8", "U3"])
arrays = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | arrays
keys = st.text(max_size=5).filter(lambda k: k not in ("__array__", "__float__"))
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)


def bits(value):
    """The value with floats as their bits, so that NaN equals NaN and -0.0 differs from 0.0."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "U":
            return ("array", value.shape, value.ravel().tolist())
        little = value.astype(value.dtype.newbyteorder("<"))
        flat = [float(x).hex() for x in little.ravel()] if little.dtype.kind == "f" else little.ravel().tolist()
        return ("array", value.shape, little.dtype.str, flat)
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, dict):
        return {k: bits(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(v) for v in value]
    return (type(value).__name__, value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=values)
def test_a_value_comes_back_with_every_bit(tmp_path_factory, value):
    """Nested mappings, lists, numbers, text and arrays come back equal: NaN, infinity, -0.0 and dtypes too."""
    path = tmp_path_factory.getbasetemp() / "frozen.json"
    back = thaw(path, freeze(value, path))
    assert bits(back) == bits(value)
    assert freeze(back, path) == freeze(value, path)


def test_special_values_come_back(tmp_path):
    """The values that JSON has no word for are kept, alone, in lists and in arrays."""
    value = {
        "nan": math.nan, "inf": [math.inf, -math.inf], "zero": -0.0, "f4": np.array([0.1, np.nan, -0.0], np.float32),
        "text": np.array([["a", ""], ["ü", "c"]]), "empty": np.zeros((0, 3)), "scalar": np.float32(0.1),
        "n": np.int64(7),
        "b": np.bool_(True), "tiny": 5e-324, "big": 2**80, "tuple": (1, 2.0),
    }  # fmt: skip
    back = thaw(tmp_path / "f.json", freeze(value, tmp_path / "f.json"))
    assert math.isnan(back["nan"])
    assert back["inf"] == [math.inf, -math.inf]
    assert math.copysign(1, back["zero"]) == -1
    assert back["f4"].dtype == np.float32
    assert back["f4"].tobytes() == value["f4"].tobytes()
    assert np.array_equal(back["text"], value["text"])
    assert back["empty"].shape == (0, 3)
    assert back["scalar"] == float(np.float32(0.1))
    assert (back["n"], back["b"], back["tiny"], back["big"], back["tuple"]) == (7, True, 5e-324, 2**80, [1, 2.0])


def test_equal_values_are_one_text(tmp_path):
    """The order of a mapping's keys and the layout of an array do not show in the file."""
    table = np.arange(6.0).reshape(2, 3)
    one = freeze({"a": 1, "b": table}, tmp_path / "1.json")
    other = freeze({"b": np.asfortranarray(table), "a": 1}, tmp_path / "2.json")
    assert one == other
    assert json.loads((tmp_path / "1.json").read_text())["a"] == 1


def test_any_altered_byte_is_noticed(tmp_path):
    """A frozen file with one byte changed, cut or added is refused, and so is one that is gone."""
    path = tmp_path / "f.json"
    sha256 = freeze({"factor": [1.25, 3]}, path)
    text = path.read_bytes()
    path.chmod(0o644)
    for i in range(len(text)):
        path.write_bytes(text[:i] + bytes([text[i] ^ 1]) + text[i + 1 :])
        with pytest.raises(FrozenChanged, match=r"f\.json: was altered"):
            thaw(path, sha256)
    for altered in (text[:-1], text + b" ", b""):
        path.write_bytes(altered)
        with pytest.raises(FrozenChanged):
            thaw(path, sha256)
    path.unlink()
    with pytest.raises(FrozenChanged, match="cannot be read"):
        thaw(path, sha256)


def test_a_frozen_file_is_read_only_and_can_be_frozen_anew(tmp_path):
    """Nobody may write it; freezing another value puts a new file in its place."""
    path = tmp_path / "f.json"
    freeze(1, path)
    assert path.stat().st_mode & 0o777 == 0o444
    assert thaw(path, freeze(2, path)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [1, {2}]}, r"value\['a'\]\[1\] is a set"), ({1: 2}, "the key 1 is no string"), (1j, "is a complex"),
        ({"a": np.array([1j])}, r"value\['a'\] is an array of complex128"), (np.array([None]), "array of object"),
        (np.array(["2020-01-01"], "M8[D]"), "datetime64"), (b"bytes", "is a bytes"), (lambda: 1, "is a function"),
        (np.ma.array([1, 2], mask=[0, 1]), "masked array"), ({"__float__": "nan"}, "'__float__' is reserved"),
        ({"x": {"__array__": 1}}, "'__array__' is reserved"), (np.zeros(1, np.longdouble), "longdouble|float128"),
    ],
)  # fmt: skip
def test_what_cannot_be_frozen_is_named_by_its_place(tmp_path, value, said):
    """Whatever would not come back as it was is refused, and no file is left."""
    with pytest.raises(OutputError, match=said):
        freeze(value, tmp_path / "f.json")
    assert list(tmp_path.iterdir()) == []
