"""Conversion to a model's dtype: the value of numpy where it is right, a refusal with row and value where it is not."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign.util.casting import DoesNotFit, as_dtype

BF16 = np.dtype(ml_dtypes.bfloat16)
WRONG = [  # values, dtype, first row that does not fit, what is said of it
    ([0, 127, 128, 300], "int8", 2, "128 does not fit int8 (-128 to 127)"),
    ([5.0, -1.5], "uint8", 1, "-1.5 does not fit uint8 (0 to 255)"),
    ([1, -1], "uint64", 1, "-1 does not fit uint64"),
    ([1.0, 2.5], "int32", 1, "2.5 is not a whole number, and int32 holds whole numbers only"),
    ([0.0, math.nan], "int8", 1, "nan does not fit int8"),
    ([math.inf], "int64", 0, "inf does not fit int64"),
    ([2.0**63], "int64", 0, "does not fit int64"),
    ([2.0**64], "uint64", 0, "does not fit uint64"),
    (np.array([1.0, -math.inf], np.float16), "int32", 1, "-inf does not fit int32"),
    (np.array([2**63], np.uint64), "int64", 0, "9223372036854775808 does not fit int64"),
    ([1.0, 70000.0], "float16", 1, "70000.0 is too large for float16 and would become inf"),
    ([65520], "float16", 0, "65520 is too large for float16"),
    ([1e300], "float32", 0, "1e+300 is too large for float32"),
    ([1.0, -1e39], BF16, 1, "-1e+39 is too large for BF16"),
    ([0, 1, 2], "bool", 2, "2 is neither 0 nor 1, the values of BOOL"),
    ([math.nan], "bool", 0, "nan is neither 0 nor 1"),
    (["1.5"], "float32", 0, "values of type text are no numbers"),
    ([1 + 2j], "float32", 0, "values of type complex are no numbers"),
    ([b"1"], "int8", 0, "values of type bytes are no numbers"),
    (np.array(["2018-01-01"], "M8[D]"), "int64", 0, "values of type date are no numbers"),
    (np.array([None]), "float32", 0, "values of type object are no numbers"),
    ([[1, 2], [3, 400]], "uint8", 1, "400 does not fit uint8"),
]  # fmt: skip
RIGHT = [
    (np.array([1, -2], np.int32), "int64", [1, -2]), ([3.0, -0.0], "int8", [3, 0]), ([True, False], "float32", [1, 0]),
    ([0, 1], "bool", [False, True]), ([0.0, 1.0], "bool", [False, True]), ([True], "int8", [1]),
    (np.array([2.5], ">f8"), "float32", [2.5]), (np.array([7], ">i2"), "int64", [7]),
    ([math.nan, math.inf, -math.inf], "float16", [math.nan, math.inf, -math.inf]),
    ([math.nan, math.inf], BF16, [math.nan, math.inf]), ([-(2.0**63)], "int64", [-(2**63)]),
    ([2**24 + 1], "float32", [2.0**24]), ([0.1], "float32", [float(np.float32(0.1))]), ([1e-300], "float32", [0.0]),
    ([1.00390625, 1.01171875], BF16, [1.0, 1.015625]),  # both half-way: to even
    ([], "int8", []), (np.array(5), "int8", 5),
]  # fmt: skip


@pytest.mark.parametrize(("values", "dtype", "row", "said"), WRONG)
def test_a_value_that_does_not_fit_is_refused(values, dtype, row, said):
    """The first row that holds one is named, and the value."""
    with pytest.raises(DoesNotFit) as caught:
        as_dtype(np.asarray(values), np.dtype(dtype))
    assert said in str(caught.value)
    assert caught.value.row == row


@pytest.mark.parametrize(("values", "dtype", "want"), RIGHT)
def test_a_value_that_fits_is_the_same_number(values, dtype, want):
    """Exact where the dtype can be; floats round to nearest, ties to even; NaN and inf stay what they are."""
    found = as_dtype(np.asarray(values), np.dtype(dtype))
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found.astype(np.float64), np.asarray(want, np.float64))


def test_unsafe_is_numpys_own_conversion():
    """``cast: unsafe`` wraps, cuts and overflows as ``astype`` does, without a warning."""
    for values, dtype in (([300, -1], "int8"), ([70000.0], "float16"), ([2.5], "int32")):
        with np.errstate(all="ignore"):
            want = np.asarray(values).astype(dtype)
        np.testing.assert_array_equal(as_dtype(np.asarray(values), np.dtype(dtype), unsafe=True), want)


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES = [*INTEGERS, "float16", "float32", "float64", "bool"]
EDGES = st.sampled_from([0, 1, -1, 127, 128, 255, 256, 65504, 65520])
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(width=64) | EDGES


@given(value=NUMBERS, source=st.sampled_from(DTYPES), target=st.sampled_from(DTYPES))
def test_every_conversion_keeps_the_number_or_is_refused(value, source, target):
    """As Python's own numbers: to integers and booleans equal; to floats the nearest, and what is finite stays so."""
    try:
        with np.errstate(all="ignore"):
            array = np.array([value, value]).astype(source)
    except (OverflowError, ValueError):
        return
    given = array[0].item()
    try:
        found = as_dtype(array, np.dtype(target))[0].item()
    except DoesNotFit:
        with np.errstate(all="ignore"):
            forced = array.astype(target)[0].item()
        assert forced != given or (isinstance(given, float) and not math.isfinite(given)), (given, forced)
        return
    if np.dtype(target).kind in "iub":
        assert found == given
    elif isinstance(given, float) and math.isnan(given):
        assert math.isnan(found)
    else:
        assert math.isinf(found) == (isinstance(given, float) and math.isinf(given))
        with np.errstate(all="ignore"):
            assert found == np.asarray(given).astype(target).item()


def test_a_part_of_an_array_is_filled_in_place():
    """``out`` is a column of a stacked array, not contiguous."""
    stacked = np.zeros((3, 2), np.float32)
    as_dtype(np.array([1.5, 2.5, 3.5]), stacked.dtype, out=stacked[:, 1])
    assert stacked.tolist() == [[0, 1.5], [0, 2.5], [0, 3.5]]
    with pytest.raises(DoesNotFit, match="1e"):
        as_dtype(np.array([1.5, 2.5, 1e300]), stacked.dtype, out=stacked[:, 1])
