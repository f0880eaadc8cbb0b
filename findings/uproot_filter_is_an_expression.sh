#!/usr/bin/env bash
# A branch that is chosen as an object, not by name, is all the same evaluated by its name, as an expression.
#
# uproot 5.7.7. Source: uproot/behaviors/TBranch.py, arrays() and _regularize_expressions.
# A tree has the branches "/a/" and "x". arrays(filter_branch=...) gets a function that says yes to each branch object; no
# name is given anywhere. It raises "symbol '/a/' is recursively defined with aliases", although the tree has no alias, and
# gives x neither. The branch's own array() reads it.
# The remedy: read branches one by one with array(), or give arrays() only branches whose names are plain identifiers.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q uproot==5.7.7 awkward==2.14.0
"$place/venv/bin/python" - "$place/t.root" <<'PY' | tee "$place/seen"
import sys
import numpy as np, uproot
with uproot.recreate(sys.argv[1]) as file:
    file.mktree("t", {"/a/": "float64", "x": "float64"}).extend({"/a/": np.arange(3.0), "x": np.arange(3.0)})
with uproot.open(sys.argv[1]) as file:
    tree = file["t"]
    print("aliases:", dict(tree.aliases))
    print("array():", tree.branches[0].name, tree.branches[0].array(library="np").tolist())
    try:
        print(tree.arrays(filter_branch=lambda branch: True))
    except ValueError as error:
        print("arrays():", str(error).strip().splitlines()[0])
PY
diff "$place/seen" - <<'SEEN'
aliases: {}
array(): /a/ [0.0, 1.0, 2.0]
arrays(): symbol '/a/' is recursively defined with aliases:
SEEN
echo "as described"
