"""The rungs of the retry ladder, by which a report counts rows."""

from __future__ import annotations

RUNGS = ("first", "same_server", "other_server", "restarted_server", "local_twin", "parked")
"""The ladder that a request climbs until somebody answers."""
