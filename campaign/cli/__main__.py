"""``python -m campaign.cli``: the command line, where the script ``campaign`` is not on PATH."""

from campaign.cli.main import command

command()
