"""Turns off onnxruntime's usage reports, unless the user wants them. Imported before onnxruntime.

onnxruntime 1.32 writes a session file into the temporary directory and a device id into the home directory when it is
imported, and reports to its vendor's server. It reads the variable when it is imported.
"""

from __future__ import annotations

import os

VARIABLE = "ORT_DISABLE_TELEMETRY"

os.environ.setdefault(VARIABLE, "1")
