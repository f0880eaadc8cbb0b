"""``python -m campaign.cli``: the command line, where the script ``campaign`` is not on PATH."""

from campaign.cli.main import command

if __name__ == "__main__":
    command()
