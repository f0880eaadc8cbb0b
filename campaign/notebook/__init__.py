"""For notebooks: runs in the background, runs that are shown again, and the magic ``%%campaign``.

In: a `campaign.Campaign`, a run directory, or the text of a cell. Out: a `campaign.notebook.handle.RunHandle` or a
report.
"""
