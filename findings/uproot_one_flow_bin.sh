#!/usr/bin/env bash
# A histogram axis with one flow bin loses the entries of that flow bin when it is written to ROOT.
#
# uproot 5.7.7, hist 2.12.1. Source: uproot/writing/identify.py, to_writable: the values with flow bins are taken only if
# every axis has two more of them than without.
# An Integer axis without an underflow bin, filled with 0, 1, 2, 7, 9, 9: six entries, three of them in the overflow bin.
# The ROOT file has three entries, and its overflow bin is empty. Nothing is raised or warned of.
# The remedy: write axes with both flow bins.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q uproot==5.7.7 hist==2.12.1
"$place/venv/bin/python" -W error::DeprecationWarning - "$place/h.root" <<'PY' | tee "$place/seen"
import sys
import hist, uproot
h = hist.Hist(hist.axis.Integer(0, 4, underflow=False, name="n"))
h.fill([0, 1, 2, 7, 9, 9])
with uproot.recreate(sys.argv[1]) as file:
    file["h"] = h
with uproot.open(sys.argv[1]) as file:
    back = file["h"]
print("filled:", h.sum(flow=True))
print("written:", back.values(flow=True).tolist(), "entries", back.member("fEntries"))
PY
diff "$place/seen" - <<'SEEN'
filled: 6.0
written: [0.0, 1.0, 1.0, 1.0, 0.0, 0.0] entries 3.0
SEEN
echo "as described"
