"""The run directory: its paths, receipts of finished tasks, packed partials, and frozen values.

In and out: files below ``RUN_DIR``. Every write is complete or absent: a file appears under its name only when its
content is on the disk.
"""
