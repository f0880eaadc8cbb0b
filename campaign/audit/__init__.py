"""Examines campaigns. `verify` checks a finished run against its manifest; `tune` measures settings on a sample.

In: a run directory or a campaign. Out: reports. Nothing in a run directory is changed. Only the command line and users
import this package.
"""
