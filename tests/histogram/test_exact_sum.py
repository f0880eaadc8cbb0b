"""Laws of exact sums: what is added is what counts, not how."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from campaign.errors import OutputError
from campaign.histogram.exact_sum import BLOCK, ExactSum, add_block, add_together
from campaign.histogram.extraction import cut, extents

SIZE = 3
ANY_FINITE = st.floats(allow_nan=False, allow_infinity=False)
NASTY = st.sampled_from(
    [1e300, -1e300, 1e-300, 5e-324, -5e-324, 2.0**500, -(2.0**499), 1.0, -0.0, 2.2250738585072014e-308]
)
WEIGHTS = st.lists(st.tuples(st.integers(0, SIZE - 1), ANY_FINITE | NASTY), max_size=40)
MODEST = st.floats(-1e300, 1e300)


def sum_of(index, weights, size=SIZE):
    total = ExactSum(size)
    total.add(np.asarray(index, np.intp), np.asarray(weights, np.float64))
    return total


def state_bytes(total):
    return [(key, array.dtype.str, array.shape, array.tobytes()) for key, array in sorted(total.state().items())]


def rounded_fraction(weights):
    """The IEEE rounding of the rational sum: what every sum is held against."""
    exact = sum(map(Fraction, weights), Fraction(0))
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def lognormal(seed, n, decades=12):
    """Both signs, full float64 mantissas, the given number of decades within three standard deviations."""
    rng = np.random.default_rng(seed)
    return rng.lognormal(0, decades * math.log(10) / 6, n) * rng.choice([-1.0, 1.0], n)


@given(WEIGHTS)
@example([(0, 1e300), (0, -1e300), (0, 1e-300)])
@example([(0, 1.7e308), (0, 1.7e308)])
@example([(0, 2.0**53), (0, 1.0), (0, 5e-324)])
def test_rounded_once(entries):
    """Each bin is the float64 nearest to the rational sum of its weights, whatever their range."""
    index, weights = [bin_ for bin_, _ in entries], [weight for _, weight in entries]
    expected = [rounded_fraction([weight for bin_, weight in entries if bin_ == wanted]) for wanted in range(SIZE)]
    got = sum_of(index, weights).round()
    assert got.tobytes() == np.array(expected).tobytes()


@given(st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=30))
def test_subnormals(units):
    """Sums of subnormals are right to the last of their few bits."""
    weights = np.ldexp(np.array(units, np.float64), -1074)
    assert sum_of(np.zeros(len(units), int), weights).round()[0] == math.fsum(weights)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(3))
def test_equals_fsum(seed, dtype):
    """Over several blocks and 12 decades of both signs every bin equals math.fsum."""
    weights = lognormal(seed, 3 * BLOCK + 7).astype(dtype).astype(np.float64)
    index = np.random.default_rng(seed).integers(0, SIZE, len(weights))
    got = sum_of(index, weights).round()
    assert got.tolist() == [math.fsum(weights[index == bin_]) for bin_ in range(SIZE)]


def test_plain_sums_differ():
    """Order shows in plain sums of the same weights, in most bins; in ours in none."""
    bins, weights = 200, lognormal(5, 40_000)
    index = np.random.default_rng(6).integers(0, bins, len(weights))
    order = np.random.default_rng(7).permutation(len(weights))
    plain = [np.bincount(index[way], weights[way], bins) for way in (slice(None), order)]
    exact = [sum_of(index[way], weights[way], bins).round() for way in (slice(None), order)]
    assert np.count_nonzero(plain[0] != plain[1]) > bins // 2
    assert exact[0].tobytes() == exact[1].tobytes()


@given(WEIGHTS, st.randoms(use_true_random=False))
def test_any_merge_tree(entries, random):
    """Any permutation, partition and merge tree of the same weights gives the same state, byte for byte."""
    whole = sum_of([bin_ for bin_, _ in entries], [weight for _, weight in entries])
    random.shuffle(entries)
    parts = [ExactSum(SIZE)]
    while entries:
        count = random.randint(1, len(entries))
        parts.append(sum_of([bin_ for bin_, _ in entries[:count]], [weight for _, weight in entries[:count]]))
        del entries[:count]
    while len(parts) > 1:
        part = parts.pop(random.randrange(len(parts)))
        if random.random() < 0.3:
            part = ExactSum.from_state(part.state())
        parts[random.randrange(len(parts))] += part
    assert state_bytes(parts[0]) == state_bytes(whole)


@given(WEIGHTS)
def test_cancellation_leaves_nothing(entries):
    """Weights and their negatives leave the state of a sum that was never filled, and +0."""
    index, weights = [bin_ for bin_, _ in entries], np.array([weight for _, weight in entries])
    total = sum_of(index, weights)
    total += sum_of(index, -weights)
    assert state_bytes(total) == state_bytes(ExactSum(SIZE))
    assert total.round().tobytes() == np.zeros(SIZE).tobytes()


@given(WEIGHTS)
def test_state_round_trip(entries):
    """State and pickle bring back the same sums, independent of the original."""
    total = sum_of([bin_ for bin_, _ in entries], [weight for _, weight in entries])
    before = state_bytes(total)
    for twin in (ExactSum.from_state(total.state()), pickle.loads(pickle.dumps(total))):
        assert state_bytes(twin) == before
        twin.add(np.arange(SIZE), 1.0)
        assert state_bytes(total) == before


@settings(max_examples=50)
@given(st.floats(allow_nan=True, allow_infinity=True), st.lists(st.integers(0, SIZE - 1), max_size=20))
def test_equal_weights(weight, index):
    """One weight for all entries is that weight once per entry."""
    total, every = ExactSum(SIZE), ExactSum(SIZE)
    total.add(np.array(index, np.intp), weight)
    every.add(np.array(index, np.intp), np.full(len(index), weight))
    assert state_bytes(total) == state_bytes(every)


@given(MODEST, st.lists(st.integers(0, 2**34), min_size=SIZE, max_size=SIZE))
def test_counts(weight, counts):
    """Counts times a weight are exact far beyond 2**53."""
    total = ExactSum(SIZE)
    total.add_counts(np.array(counts, np.int64), weight)
    assert total.round().tolist() == [rounded_fraction([Fraction(weight) * count]) for count in counts]


def test_many_merges_carry():
    """Carries are taken out before an int64 overflows, however often sums are merged."""
    part = sum_of([0, 1, 2], [1.0 - 2.0**-53, -(1.0 - 2.0**-53), 3.0e10])
    total, times = ExactSum(SIZE), 20_000
    for _ in range(times):
        total += part
    assert state_bytes(total) == state_bytes(_times(part, times))


def _times(part, times):
    """The same multiple by doubling: another route through the carries."""
    total, power = ExactSum(SIZE), ExactSum.from_state(part.state())
    while times:
        if times & 1:
            total += power
        power += power
        times >>= 1
    return total


def test_many_entries_carry():
    """More full-size slices than an int64 has room for do not overflow it."""
    n = 1 << 20
    weight = 1.0 - 2.0**-53
    total = sum_of(np.zeros(n, np.intp), np.full(n, weight), 1)
    assert total.round()[0] == float(Fraction(weight) * n)


def test_many_entries_of_many_magnitudes():
    """Weights of every magnitude there is, mixed, exhaust neither accumulators nor limbs."""
    rng = np.random.default_rng(8)
    weights = rng.integers(1, 0x7FE0_0000_0000_0000, 20_000).view(np.float64) * rng.choice([-1.0, 1.0], 20_000)
    weights = weights[np.abs(weights) < 1e303]
    parts = [sum_of(np.zeros(100, int), chunk) for chunk in weights[: len(weights) // 100 * 100].reshape(-1, 100)]
    total = ExactSum(SIZE)
    for part in parts:
        total += part
    used = weights[: len(parts) * 100]
    assert total.round()[0] == math.fsum(used) == sum_of(np.zeros(len(used), int), used).round()[0]


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.floats() | st.sampled_from([math.nan, math.inf, -math.inf]))))
def test_nonfinite_follow_ieee(entries):
    """NaN and infinities are counted beside the sums; the result is NaN after any NaN or both infinities."""
    total = sum_of([bin_ for bin_, _ in entries], [weight for _, weight in entries])
    for bin_, got in enumerate(total.round()):
        weights = [weight for entry, weight in entries if entry == bin_]
        special = [weight for weight in weights if not math.isfinite(weight)]
        counted = [total.nonfinite[kind][bin_] for kind in ("nan", "posinf", "neginf")]
        assert counted == [sum(map(math.isnan, special)), special.count(math.inf), special.count(-math.inf)]
        expected = sum(special) if special else rounded_fraction(weights)
        assert got == expected or (math.isnan(got) and math.isnan(expected))


def test_overflow_and_back():
    """A sum past the float64 range rounds to inf, and comes back when what exceeded it is taken away."""
    total = sum_of([0, 0, 1, 1], [1.7e308, 1.7e308, -1.7e308, -1.7e308])
    assert total.round().tolist() == [math.inf, -math.inf, 0.0]
    total.add(np.array([0, 1]), np.array([-1.7e308, 1.7e308]))
    assert total.round().tolist() == [1.7e308, -1.7e308, 0.0]
    assert not any(counts.any() for counts in total.nonfinite.values())


@given(st.lists(st.floats(-1e150, 1e150), max_size=30))
def test_squares_rounded_once_per_entry(weights):
    """Squares are float64 squares, summed exactly."""
    array = np.array(weights, np.float64)
    sums, squares = ExactSum(1), ExactSum(1)
    add_block([(sums, squares, np.zeros(len(array), np.intp))], array)
    assert squares.round()[0] == math.fsum(weight * weight for weight in weights)
    assert sums.round()[0] == math.fsum(weights)


def test_several_weights_with_one_index():
    """Weights added together give the states they give alone, scalars among them."""
    index = np.random.default_rng(1).integers(0, SIZE, 2 * BLOCK)
    weights = [lognormal(2, len(index)), 0.3, 1.0, lognormal(3, len(index), 40)]
    together, alone = [ExactSum(SIZE) for _ in weights], [ExactSum(SIZE) for _ in weights]
    add_together(together, index, weights)
    for total, weight in zip(alone, weights, strict=True):
        total.add(index, weight)
    assert list(map(state_bytes, together)) == list(map(state_bytes, alone))


def test_one_cut_for_several_sums():
    """Weights cut once and added to several sums, at other bins in each, are what each would have got alone."""
    rng = np.random.default_rng(9)
    weights = np.concatenate([lognormal(9, 500), [0.0, math.nan, 1e300, 5e-324, -math.inf]])
    indices = [rng.integers(0, SIZE, len(weights)) for _ in range(3)]
    together = [(ExactSum(SIZE), ExactSum(SIZE), index) for index in indices]
    with np.errstate(over="ignore", under="ignore"):
        add_block(together, weights)
        for sums, squares, index in together:
            assert state_bytes(sums) == state_bytes(sum_of(index, weights))
            assert state_bytes(squares) == state_bytes(sum_of(index, weights * weights))


CUTS = {
    "float32": lambda rng: rng.lognormal(size=5000).astype(np.float32).astype(float),
    "float64": lambda rng: rng.lognormal(size=5000),
    "12 decades": lambda rng: lognormal(10, 5000),
    "40 decades": lambda rng: lognormal(10, 5000, 40),
    "with zeros": lambda rng: rng.lognormal(size=5000) * rng.integers(0, 2, 5000),
    "ones": lambda rng: np.ones(5000),
    "powers of two": lambda rng: np.ldexp(rng.choice([-1.0, 1.0], 5000), rng.integers(-60, 60, 5000)),
    "tiny": lambda rng: np.ldexp(rng.lognormal(size=5000), -440),
    "one": lambda rng: rng.lognormal(size=1),
}


@pytest.mark.parametrize("kind", CUTS)
def test_slices_add_up(kind):
    """Slices of weights and of their squares add up to them exactly, at their positions, within their loads."""
    weights = CUTS[kind](np.random.default_rng(11))
    for values, known in zip((weights, weights * weights), extents(weights, weights * weights), strict=True):
        rest = [Fraction(value) for value in values]
        for part in cut(values, known):
            chosen = range(len(values)) if part.chosen is None else part.chosen
            for column, position in zip((part.values.real, part.values.imag), part.positions, strict=False):
                units = [Fraction(value) / Fraction(2) ** position for value in column]
                assert all(unit.denominator == 1 for unit in units)
                assert sum(map(abs, units)) <= part.load * 2**53 <= 2**53
                for entry, value in zip(chosen, column, strict=True):
                    rest[entry] -= Fraction(value)
        assert not any(rest)


def test_wrong_input_is_refused():
    """What does not fit is refused in words, and nothing is added."""
    total = ExactSum(SIZE)
    with pytest.raises(OutputError, match=r"\(2,\).*\(3,\)"):
        total.add(np.array([0, 1, 2]), np.array([1.0, 2.0]))
    with pytest.raises(OutputError, match="-1 to 3 for 3 bins"):
        total.add(np.array([-1, 3]), 1.0)
    with pytest.raises(OutputError, match="float64"):
        total.add(np.array([0.0]), 1.0)
    with pytest.raises(OutputError, match="4 bins to sums of 3"):
        total += ExactSum(4)
    assert state_bytes(total) == state_bytes(ExactSum(SIZE))
