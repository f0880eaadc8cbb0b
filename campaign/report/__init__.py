"""The report of a run, the profile of where its time went, and the lines that show its progress."""
