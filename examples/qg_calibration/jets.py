"""A toy of jets at the LHC: quark and gluon jets whose features differ as real ones do, and di-jet events of them.

A gluon radiates more than a quark (colour factors 9/4), so its jets hold more tracks, are wider and less collimated;
both grow with log pT. Features are drawn from (flavour, pT) alone: at given pT they do not know the jet's eta, which is
the assumption the matrix method rests on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Score = Callable[[Floats], Floats]

GLUON, CHARM, BOTTOM = 21, 4, 5
QUARK_LABELS = np.array([1, 2, 3, CHARM, BOTTOM], dtype=np.int32)
QUARK_SHARES = np.array([0.38, 0.34, 0.14, 0.09, 0.05])
QUARK_FRACTION = {"forward": 0.65, "central": 0.35}
PT_INDEX = 1.5  # the leading jet's pT follows pT**-PT_INDEX: flat enough to fill every pT bin of the calibration
PT_RANGE_GEV = (500.0, 2080.0)  # beyond 2000 GeV, so that the upper cut has something to cut

# Correlations of the Gaussians behind (nTracks, width, C1, private part of the BDT).
_CORRELATION = np.array([[1.0, 0.45, 0.40, 0.0], [0.45, 1.0, 0.60, 0.0], [0.40, 0.60, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
_CHOLESKY = np.linalg.cholesky(_CORRELATION).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Features:
    """What the tagger and the calibration look at, one entry per jet."""

    ntrk: Ints
    width: Floats
    c1: Floats
    bdt: Floats

    def inputs(self, pt: Floats) -> Floats:
        """The tagger's input: float32 array (n, 4) of pT in GeV, nTracks, width, C1."""
        return np.stack([pt, self.ntrk.astype(np.float32), self.width, self.c1], axis=1)


def draw_features(rng: np.random.Generator, label: Ints, pt: Floats) -> Features:
    """Draw the features of jets.

    Args:
        rng: Source of randomness.
        label: Flavour of each jet: 21 gluon, 1 to 3 light quark, 4 charm, 5 bottom.
        pt: Transverse momentum in GeV, same shape (n,).
    """
    gluon = label == GLUON
    heavy = (label == CHARM) * np.float32(0.4) + (label == BOTTOM) * np.float32(1.0)
    growth = np.log(pt / np.float32(500))
    z = rng.standard_normal((len(pt), 4), dtype=np.float32) @ _CHOLESKY.T
    mean = np.where(gluon, 21.0 + 6.5 * growth, 14.0 + 3.5 * growth + 2.5 * heavy)
    ntrk = np.floor(mean * np.exp(np.where(gluon, 0.30, 0.36) * z[:, 0] - 0.05) + 0.5).astype(np.int32)
    width = np.exp(np.where(gluon, -2.65, -3.20 + 0.25 * heavy) - 0.25 * growth + np.where(gluon, 0.48, 0.60) * z[:, 1])
    c1 = np.where(gluon, 0.285, 0.235 + 0.02 * heavy) - 0.015 * growth + np.where(gluon, 0.045, 0.055) * z[:, 2]
    evidence = (
        1.5 * (ntrk / (17.3 + 4.8 * growth) - 1) + 0.45 * (np.log(width) + 2.95 + 0.25 * growth) + 6 * (c1 - 0.26)
    )
    bdt = np.tanh(0.7 * evidence + 0.22 * z[:, 3])
    return Features(ntrk, width.astype(np.float32), np.abs(c1).astype(np.float32), bdt.astype(np.float32))


def draw_changed_features(rng: np.random.Generator, label: Ints, pt: Floats, score: Score) -> Features:
    """Draw features as `draw_features` does, but from a world whose gluons look more like quarks.

    A gluon is accepted with a probability proportional to 1 + 0.5 (1 - 2 score), else drawn again at the same pT and
    flavour, so that spectra and flavour fractions stay as they are and only the gluons' features change.
    """
    drawn = draw_features(rng, label, pt)
    pending = np.flatnonzero(label == GLUON)
    while len(pending):
        here = Features(drawn.ntrk[pending], drawn.width[pending], drawn.c1[pending], drawn.bdt[pending])
        chance = (1.0 + 0.5 * (1.0 - 2.0 * score(here.inputs(pt[pending])))) / 1.5
        pending = pending[rng.random(len(pending)) > chance]
        again = draw_features(rng, label[pending], pt[pending])
        drawn.ntrk[pending], drawn.width[pending] = again.ntrk, again.width
        drawn.c1[pending], drawn.bdt[pending] = again.c1, again.bdt
    return drawn


def draw_labels(rng: np.random.Generator, quark: NDArray[np.bool_]) -> Ints:
    """Draw the flavour label of jets of which it is known whether they are quarks."""
    return np.where(quark, rng.choice(QUARK_LABELS, size=quark.shape, p=QUARK_SHARES), GLUON).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Dijets:
    """Kinematics and flavour of n events, each array (n, 2): the leading jet, then the subleading."""

    pt: Floats
    eta: Floats
    label: Ints


def draw_dijets(
    rng: np.random.Generator, n: int, low: float = PT_RANGE_GEV[0], high: float = PT_RANGE_GEV[1]
) -> Dijets:
    """Draw n di-jet events whose leading jet has a pT between `low` and `high` GeV."""
    lead = _power_law(rng.random(n), low, high)
    sublead = lead / (1.0 + rng.exponential(0.11, n))
    eta = np.sort(rng.beta(1.3, 1.9, (n, 2)) * 2.5, axis=1)  # central, forward
    eta *= rng.choice([-1.0, 1.0], (n, 2))
    quark = rng.random((n, 2)) < (QUARK_FRACTION["central"], QUARK_FRACTION["forward"])
    label = draw_labels(rng, quark)
    forward_leads = rng.random(n) < 0.48  # a little less than half: at larger |eta| the spectrum is softer
    eta[forward_leads] = eta[forward_leads, ::-1]
    label[forward_leads] = label[forward_leads, ::-1]
    return Dijets(np.stack([lead, sublead], axis=1).astype(np.float32), eta.astype(np.float32), label)


def spectrum_integral(low: float, high: float) -> float:
    """Integral of the leading jet's pT spectrum between two values in GeV, as a share of the whole."""
    power = 1.0 - PT_INDEX
    first, last = PT_RANGE_GEV
    return float((high**power - low**power) / (last**power - first**power))


def _power_law(uniform: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Inverse of the cumulative spectrum."""
    power = 1.0 - PT_INDEX
    return (low**power + uniform * (high**power - low**power)) ** (1.0 / power)
