#!/usr/bin/env bash
# The statistics that uproot writes beside a weighted histogram hold the sum of weights in place of that of their squares.
#
# uproot 5.7.7, hist 2.12.1. Source: uproot/writing/identify.py, _root_stats_1d.
# 1000 fills of weight 0.01 with Weight storage: the sum of squares is 0.1, and the bins' own (fSumw2) say so. fTsumw2, from
# which ROOT computes the number of effective entries and the error of the mean, is 10.
# The remedy: set fTsumw2 from the bins' variances before the histogram is written.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q uproot==5.7.7 hist==2.12.1
"$place/venv/bin/python" - "$place/h.root" <<'PY' | tee "$place/seen"
import sys
import hist, numpy as np, uproot
h = hist.Hist(hist.axis.Regular(2, 0, 1, name="x"), storage=hist.storage.Weight())
h.fill(np.full(1000, 0.25), weight=0.01)
with uproot.recreate(sys.argv[1]) as file:
    file["h"] = h
with uproot.open(sys.argv[1]) as file:
    back = file["h"]
print("fTsumw", round(back.member("fTsumw"), 6))
print("fTsumw2", round(back.member("fTsumw2"), 6))
print("sum of fSumw2", round(float(np.sum(back.member("fSumw2"))), 6))
PY
diff "$place/seen" - <<'SEEN'
fTsumw 10.0
fTsumw2 10.0
sum of fSumw2 0.1
SEEN
echo "as described"
