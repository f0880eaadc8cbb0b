"""One event per request: ragged buffers out, ragged buffers back, against calls made event by event."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import awkward as ak
import numpy as np
import pytest
from campaign.stages.infer import Infer
from hypothesis import given
from hypothesis import strategies as st

from campaign import InferenceError, ServerPool, connect
from campaign.errors import OutputError
from campaign.inference.client import Servers
from campaign.inference.kserve import Tensor
from campaign.inference.ragged import Ragged
from campaign.spec.models import ServerSpec
from campaign.worker.stage_client import same
from tests.conftest import PROJECT, left, lying_about, ours, wait_until

F, E, W = Tensor("F", "FP32", (-1, 3)), Tensor("E", "INT64", (2, -1)), Tensor("W", "FP32", (1,))


@pytest.fixture(scope="module")
def long_lived_pool() -> Iterator[ServerPool]:
    """One server with the models that take text, take events, and answer wrongly."""
    before = (set(ours()), lying_about())
    models = ["ragged", "text", "odd"]
    with ServerPool(PROJECT / "tests" / "models", models=models, count=1) as pool:
        pool.wait_ready()
        yield pool
    assert wait_until(lambda: not left(before), 5), left(before)


@pytest.fixture
def servers(long_lived_pool: ServerPool) -> Iterator[Servers]:
    """A handle of one's own."""
    made = connect(long_lived_pool.address)
    yield made
    made.close()


def some(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Events of different sizes, empty ones among them."""
    rng = np.random.default_rng(seed)
    return [
        {
            "F": rng.random((points, 3)).astype(np.float32),
            "E": rng.integers(0, 99, (2, edges)),
            "W": rng.random(1).astype(np.float32),
        }
        for points, edges in zip(rng.integers(0, 9, n), rng.integers(0, 7, n), strict=True)
    ]


def buffers(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The same events, each input in one buffer."""
    return {
        "F": (np.concatenate([e["F"] for e in events]), [len(e["F"]) for e in events]),
        "E": (np.concatenate([e["E"].reshape(-1) for e in events]), [e["E"].shape[1] for e in events]),
        "W": np.array([e["W"] for e in events]),
    }


def as_awkward(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The same events as awkward arrays, as a file would give them."""
    return {
        "F": ak.values_astype(ak.Array([e["F"].tolist() for e in events]), np.float32),
        "E": ak.values_astype(ak.Array([e["E"].tolist() for e in events]), np.int64),
        "W": ak.from_numpy(np.array([e["W"] for e in events])),
    }


@pytest.mark.parametrize("form", [buffers, as_awkward])
@pytest.mark.parametrize("window", [1, "auto", 32])
def test_ragged_events_are_answered_as_each_alone(long_lived_pool: ServerPool, form: Any, window: Any) -> None:
    """Byte-equal to one call per event, in order, whatever the window; fixed outputs come as one array."""
    events = some(60)
    live = connect(dataclasses.replace(long_lived_pool.address, window=window))
    whole = live.infer_ragged("ragged", form(events))
    assert live.requests["ragged"] == 60
    assert live.rows == {"first": 60}
    alone = live.infer_events("ragged", events)
    live.close()
    assert whole["N"].shape == (60, 1)
    for i, answer in enumerate(alone):
        assert whole["N"][i].tobytes() == answer["N"].tobytes()
        for name in ("S", "D"):
            assert whole[name][i].shape == answer[name].shape
            assert whole[name][i].tobytes() == answer[name].tobytes()


def test_no_events_and_single_ones_are_right_too(servers: Servers) -> None:
    """Of no events comes no request and an answer of no entries, of the outputs' dtypes; of one, one."""
    none = servers.infer_ragged("ragged", buffers(some(1)) | {"F": (np.empty((0, 3), np.float32), []),
                                "E": (np.empty(0, np.int64), []), "W": np.empty((0, 1), np.float32)})  # fmt: skip
    assert (len(none["S"]), none["S"].flat.dtype, none["N"].shape) == (0, np.float32, (0, 1))
    assert servers.requests["ragged"] == 0
    assert len(none["D"].to_awkward()) == 0
    assert len(servers.infer_ragged("ragged", buffers(some(1)))["S"]) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=20))
def test_awkward_and_back_is_the_same(sizes: list[tuple[int, int]]) -> None:
    """Whatever the sizes: an awkward array's buffer is that of its events, and gives the array again."""
    rng = np.random.default_rng(1)
    events = {
        F: [rng.random((n, 3)).astype(np.float32) for n, _ in sizes],
        E: [rng.integers(0, 9, (2, m)) for _, m in sizes],
    }
    for tensor, arrays in events.items():
        flat = np.concatenate([a.reshape(-1) for a in arrays])
        made = Ragged(flat, np.array([a.size for a in arrays]) // abs(np.prod(tensor.shape)), tensor.shape)
        array = made.to_awkward()
        assert array.tolist() == [a.tolist() for a in arrays]
        for given_ in (
            array,
            ak.from_regular(array, axis=None),
            array[::-1][::-1],
            ak.Array(array.tolist())[: len(array)],
        ):
            back = Ragged.of(given_, tensor, flat.dtype)
            assert back.counts.tolist() == made.counts.tolist()
            assert back.flat.tobytes() == flat.tobytes()
            assert back.same(Ragged.of(given_, tensor, flat.dtype))
        assert [a.tolist() for a in made] == [a.tolist() for a in arrays]


def test_jagged_columns_are_stacked_both_ways() -> None:
    """(-1, columns) puts the columns side by side, (columns, -1) one behind the other, event by event."""
    a, b = ak.Array([[1, 2], [], [3]]), ak.Array([[10, 20], [], [30]])
    side = Ragged.stack([a, b], np.dtype(np.float32), (-1, 2))
    behind = Ragged.stack([a, b], np.dtype(np.int64), (2, -1))
    assert side.to_awkward().tolist() == [[[1, 10], [2, 20]], [], [[3, 30]]]
    assert [e.tolist() for e in behind] == [[[1, 2], [10, 20]], [[], []], [[3], [30]]]
    with pytest.raises(InferenceError, match="differ in their entries' lengths"):
        Ragged.stack([a, b[::-1]], np.dtype(np.int64), (2, -1))
    with pytest.raises(InferenceError, match="2 columns do not make events of shape"):
        Ragged.stack([a, b], np.dtype(np.int64), (3, -1))


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("F", ak.Array([[[1.0, 2.0]]]), "input F: expected (events, var, 3)"),
        ("F", ak.Array([[[1.0, None, 2.0]]]), "with missing entries"),
        ("F", ak.Array([1.0]), "input F: expected (events, var, 3)"),
        ("E", ak.Array([[[1, 2], [3]]]), "input E: expected (events, 2, var)"),
        ("F", (np.zeros((4, 3), np.float32), [3]), "1 events of shape (-1, 3) and 3 rows together need 9 elements"),
        ("F", np.zeros((1, 2, 3)), "expected float32, got float64"),
        ("F", np.zeros((2, 2, 3), np.float32), "inputs differ in events: {'F': 2, 'E': 1, 'W': 1}"),
        ("W", np.zeros((1, 2), np.float32), "input W: expected (events, 1)"),
    ],
)
def test_events_that_do_not_fit_are_refused_before_they_are_sent(
    servers: Servers, name: str, wrong: Any, said: str
) -> None:
    """The error names model and input, what was expected and what was given; no request leaves."""
    with pytest.raises(InferenceError) as caught:
        servers.infer_ragged("ragged", buffers(some(1, seed=3)) | {name: wrong})
    assert said in str(caught.value)
    assert "model ragged" in str(caught.value)
    assert servers.requests["ragged"] == 0


def test_events_go_to_models_that_do_not_batch(servers: Servers) -> None:
    """A model that batches rows is not asked event by event; a missing input is named."""
    with pytest.raises(InferenceError, match="batches rows"):
        servers.infer_ragged("odd", {"X": (np.zeros(3, np.float32), [1, 2])})
    with pytest.raises(InferenceError, match="takes the inputs F, E, W; given: F"):
        servers.infer_ragged("ragged", {"F": buffers(some(1))["F"]})


def test_the_stage_sends_one_request_per_event_for_jagged_columns(servers: Servers) -> None:
    """Jagged columns become events, flat ones their fixed inputs; variable outputs become jagged columns."""
    events = some(20, seed=5)
    rows = as_awkward(events)
    batch = ak.zip(
        {
            "x": rows["F"][:, :, 0], "y": rows["F"][:, :, 1], "z": ak.values_astype(rows["F"][:, :, 2], np.float64),
            "w": rows["W"][:, 0], "edges": rows["E"], "run": np.arange(20),
        },
        depth_limit=1,
    )  # fmt: skip
    stage = Infer("ragged", {"F": ["x", "y", "z"], "E": "edges", "W": "w"}, {"s": "S", "shifted": "D", "n": "N"})
    columns = stage(batch, _Context(servers))
    alone = servers.infer_events("ragged", events)
    assert columns["n"].tolist() == [int(a["N"][0]) for a in alone]
    assert columns["s"].tolist() == [a["S"].tolist() for a in alone]
    assert columns["shifted"].tolist() == [a["D"].tolist() for a in alone]
    assert columns["run"].tolist() == list(range(20))
    assert columns.to_awkward()["s"].tolist() == columns["s"].tolist()
    assert len(stage(batch[:0], _Context(servers))["s"]) == 0
    torn = ak.with_field(batch, batch["x"][::-1], "x")
    with pytest.raises(OutputError, match="columns x, y, z cannot be sent as F: the columns differ"):
        stage(torn, _Context(servers))


class _Context:
    """What the stage looks at."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers


def test_equal_events_are_known_to_be_equal() -> None:
    """Variations of the weight alone share an answer; the same elements cut elsewhere are other events."""
    flat = np.array([1, np.nan, 3], np.float32)
    one, other = (Ragged(flat.copy(), np.array([1, 2]), (-1,)) for _ in range(2))
    assert same(one, other)
    assert not same(one, Ragged(flat, np.array([2, 1]), (-1,)))
    assert not same(one, flat)


def test_text_is_sent_and_read(servers: Servers) -> None:
    """BYTES tensors, cut and padded like any others."""
    x = np.array([[f"jet {i}".encode()] for i in range(19)], dtype=np.object_)
    assert servers.infer("text", {"X": x})["Y"].tolist() == [[f"JET {i}".encode()] for i in range(19)]
    assert servers.requests["text"] == 3


@pytest.mark.parametrize(
    ("first", "said"),
    [(-1.0, r"model odd, output Y: expected shape \(8, 1\), got \(7, 1\)"), (-2.0, "model odd: gave no output Z")],
)
def test_a_model_that_answers_wrongly_is_found_out(servers: Servers, first: float, said: str) -> None:
    """A row or an output too few is an error that names them, for every request it happens to and for no other."""
    x = np.ones((20, 1), np.float32)
    x[8] = first
    with pytest.raises(InferenceError, match=said) as caught:
        servers.infer("odd", {"X": x})
    assert caught.value.permanent
    assert servers.infer("odd", {"X": x[:8]})["Z"].tolist() == [[1]] * 8


def test_the_answers_are_those_of_tritonclient(long_lived_pool: ServerPool, servers: Servers) -> None:
    """Byte-equal with tritonclient's own `infer` of the same request."""
    import tritonclient.grpc as grpcclient

    client = grpcclient.InferenceServerClient(long_lived_pool.records()[0].url)
    event = some(9, seed=7)[-1]
    inputs = []
    for tensor in (F, E, W):
        inputs.append(grpcclient.InferInput(tensor.name, list(event[tensor.name].shape), tensor.datatype))
        inputs[-1].set_data_from_numpy(event[tensor.name])
    theirs = client.infer("ragged", inputs)
    mine = servers.infer("ragged", event)
    for name, array in mine.items():
        assert array.dtype == theirs.as_numpy(name).dtype
        assert array.tobytes() == theirs.as_numpy(name).tobytes()
        assert array.flags.aligned
        assert not array.flags.writeable
    client.close()


def test_a_spec_takes_a_window_or_measures() -> None:
    """``window`` is an integer or "auto"; anything else is refused."""
    assert ServerSpec(models=["m"]).window == "auto"
    assert ServerSpec(models=["m"], window=3).window == 3
    for wrong in (0, 2000, "wide", 1.5):
        with pytest.raises(ValueError, match="window"):
            ServerSpec(models=["m"], window=wrong)
