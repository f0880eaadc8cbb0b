"""Runs one campaign from start to report: checks it, schedules its tasks, merges its outputs, writes its report.

In: a `campaign.spec.models.Campaign`. Out: a `campaign.report.report.Report` and the files of the run directory. The
command line and the audit import this package; workers and servers never do.
"""
