"""Lists of names in messages: short for a file with thousands of branches, with the near name first."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pydantic import BaseModel, Field

from campaign.errors import CampaignError, SpecError
from campaign.inference.kserve import ModelInfo, Tensor, check_names
from campaign.inference.stand_in import StandInServers
from campaign.outputs.columns import _cannot_hold, _difference
from campaign.outputs.counts import what
from campaign.outputs.kinds import as_output
from campaign.spec.models import ProviderSpec
from campaign.spec.options import check_options
from campaign.spec.references import check_known
from campaign.util.messages import article, counted, listed, unknown

NAMES = [f"a_branch_with_a_long_name_{i:05d}" for i in range(1_700)]
NEAR = "a_branch_with_a_long_name_0160"


def message(call) -> str:
    """Of the error that is raised."""
    with pytest.raises(CampaignError) as caught:
        call()
    return caught.value.message


def model() -> ModelInfo:
    """With as many inputs."""
    return ModelInfo("m", tuple(Tensor(n, "FP32", (-1, 1)) for n in NAMES), (), 8, 8, False)


SIGNATURE = {"inputs": [], "outputs": [], "batch": 8, "max_batch": 8, "optional": []}
LISTS = {
    "unknown": lambda: unknown(NEAR, NAMES, "branches"),
    "campaign": lambda: message(lambda: check_known(NEAR, NAMES, ("stages",), "stages")),
    "inputs": lambda: message(lambda: check_names(model(), dict.fromkeys([*NAMES[1:], NEAR], np.zeros(1)))),
    "stand-in": lambda: message(lambda: StandInServers(dict.fromkeys(NAMES, SIGNATURE)).model(NEAR)),
    "a dict of different things": lambda: message(
        lambda: as_output({**dict.fromkeys(NAMES, 1), NEAR: np.zeros(3)}, "s")
    ),
    "columns": lambda: _cannot_hold(pa.schema([(n, pa.int8()) for n in NAMES]), ValueError("x")).message,
    "other columns": lambda: _difference(pa.schema([(n, pa.int8()) for n in NAMES]), pa.schema([])),
    "other types": lambda: _difference(*(pa.schema([(n, t) for n in NAMES]) for t in (pa.int8(), pa.int16()))),
}


@pytest.mark.parametrize("place", LISTS)
def test_a_list_of_names_is_cut(place):
    """Five of them, and how many more there are."""
    text = LISTS[place]()
    assert len(text) < 600, text
    assert "more" in text


@pytest.mark.parametrize("place", ["unknown", "campaign", "inputs", "stand-in"])
def test_the_near_name_is_asked_for(place):
    """As the user may have meant it."""
    assert "did you mean 'a_branch_with_a_long_name_0" in LISTS[place]()


def test_words_agree_with_their_number():
    """And the article with the noun."""
    assert [counted(n, "file") for n in (0, 1, 2, 1_000)] == ["0 files", "1 file", "2 files", "1,000 files"]
    assert [article(n) for n in ("str", "int", "Array", "ndarray")] == ["a str", "an int", "an Array", "an ndarray"]
    assert what(1) == "an int"
    assert listed(["a", "b"]) == "a, b"


class Credentials(BaseModel):
    """Options of a provider with a token."""

    token: int = Field(repr=False)
    port: int = 1


@pytest.mark.parametrize("value", ["abc; found def", {"a": "abc; found def"}])
def test_a_secret_is_in_no_message(value):
    """Whatever stands in it; the value of another option is shown."""
    with pytest.raises(SpecError) as caught:
        check_options(Credentials, {"token": value}, ("provider",), ProviderSpec)
    assert "a whole number is needed" in str(caught.value)
    assert not [part for part in ("abc", "def", "found") if part in str(caught.value)]
    with pytest.raises(SpecError, match="a whole number is needed; found 'x'"):
        check_options(Credentials, {"token": 1, "port": "x"}, ("provider",), ProviderSpec)
