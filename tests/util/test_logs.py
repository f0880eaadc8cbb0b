"""Logging: silent for programs that use campaign as a library, a file in the run directory for a run."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

from campaign.util.logs import log_to


def test_nothing_is_shown_unless_a_program_asks(tmp_path):
    """A warning of campaign's loggers reaches no terminal by itself."""
    code = "import logging, campaign; logging.getLogger('campaign.driver').warning('seen')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_a_file_holds_the_records_of_its_block_alone(tmp_path):
    """Time in UTC, process, level and module stand before each text; records before and after are not there."""
    logger = logging.getLogger("campaign.driver.run")
    logger.warning("before")
    with log_to(tmp_path / "logs" / "driver.log"):
        logger.info("within")
        logger.debug("too small")
    logger.warning("after")
    (line,) = (tmp_path / "logs" / "driver.log").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \d+ INFO campaign\.driver\.run: within", line)
    assert logging.getLogger("campaign").level == logging.NOTSET


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path):
    """The folder of the log is a file: the block runs all the same."""
    (tmp_path / "logs").touch()
    with log_to(tmp_path / "logs" / "driver.log"):
        logging.getLogger("campaign.driver.run").warning("lost")
