#!/usr/bin/env bash
# A walltime of less than a minute becomes 0 minutes in the batch script; one with days is refused only at submit.
#
# parsl 2026.10.26. Source: parsl/utils.py, wtime_to_minutes, by which SlurmProvider fills "--time" of its template.
# "00:00:59" is 0: the script then says --time=0, which Slurm's manual gives as "no time limit". Seconds are dropped always.
# "2-00:00:00", which Slurm itself takes, makes a SlurmProvider without a word; the conversion at submit raises ValueError.
# The remedy: whole minutes, hours beyond 24 in place of days.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q parsl==2026.10.26
"$place/venv/bin/python" - <<'PY' 2>/dev/null | tee "$place/seen"
from parsl.providers.slurm.template import template_string
from parsl.utils import wtime_to_minutes

print([line for line in template_string.splitlines() if "time" in line])
for text in ("00:00:59", "00:01:59", "2-00:00:00"):
    try:
        print(text, "is", wtime_to_minutes(text), "minutes")
    except ValueError as error:
        print(text, "raises", error)
PY
diff "$place/seen" - <<'SEEN'
['#SBATCH --time=${walltime}']
00:00:59 is 0 minutes
00:01:59 is 1 minutes
2-00:00:00 raises invalid literal for int() with base 10: '2-00'
SEEN
echo "as described"
