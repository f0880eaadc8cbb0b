"""The command line. Parses arguments, calls the driver and the audit, and prints their results.

`main` returns the exit code; `command` is the entry point of the installed command.
"""

from campaign.cli.main import command, main

__all__ = ["command", "main"]
