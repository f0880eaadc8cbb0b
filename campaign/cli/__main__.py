"""``python -m campaign.cli``: the command line, where the script ``campaign`` is not on PATH."""

from campaign.cli.commands import command

command()
