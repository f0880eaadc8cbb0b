"""Helpers that know nothing of campaigns: files, plug-ins, messages, lazy imports, types."""
