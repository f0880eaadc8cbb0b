"""Laws of the shipped models and of those the tests use, as far as they hold without a server."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import uproot
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components as scipy_components
from tritonclient.grpc import model_config_pb2

PROJECT = Path(__file__).resolve().parents[2]
SHARED = PROJECT.parent / "shared" / "data"
SHIPPED = PROJECT / "model_repository"
TRACK_GNN = SHIPPED / "track_gnn"
DTYPES = {"TYPE_FP32": np.float32, "TYPE_FP64": np.float64, "TYPE_INT64": np.int64}


def models(repository: Path) -> list[Path]:
    return sorted(folder for folder in repository.iterdir() if (folder / "configs").is_dir())


def name_of(path: Path) -> str:
    return path.name


EVERY = models(SHIPPED) + models(PROJECT / "tests" / "models")
WITH_CANARY = [folder for folder in EVERY if folder.name not in ("no_canary", "text")]


def load(path: Path) -> ModuleType:
    """A file as a module, whatever its folder is called."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


gnn = load(TRACK_GNN / "1" / "gnn.py")
reference = load(TRACK_GNN / "reference.py")
zmumu = load(PROJECT / "examples" / "zmumu" / "zmumu.py")


def arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        pytest.skip(f"{path} is absent: the real data lie beside the project, not in it")
    with np.load(path) as file:
        return dict(file)


def config(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def default_weights() -> dict[str, np.ndarray]:
    return arrays(TRACK_GNN / "1" / "weights.npz")


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    """Any small graph: empty, with loops, with the same edge twice, in chains and in stars."""
    n = draw(st.integers(1, 60))
    pairs = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=90))
    return n, np.array(pairs, dtype=np.int64).reshape(-1, 2).T


@settings(deadline=None, max_examples=300)
@given(graphs())
def test_components_are_those_of_scipy(graph):
    """Two nodes have one label exactly where scipy finds them connected, and labels count up by first node."""
    n, edges = graph
    ours = gnn.connected_components(n, edges)
    count, theirs = scipy_components(coo_matrix((np.ones(edges.shape[1]), edges), shape=(n, n)), directed=False)
    assert len(np.unique(np.stack([ours, theirs]), axis=1).T) == count
    first_seen = np.unique(ours, return_index=True)
    assert first_seen[0].tolist() == list(range(count))
    assert (np.diff(first_seen[1]) > 0).all()


@pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
def test_a_long_chain_is_one_component(order):
    """However its nodes are numbered, a chain of 20,000 nodes is one component."""
    nodes = {
        "rising": np.arange(20_000),
        "falling": np.arange(20_000)[::-1],
        "shuffled": np.random.default_rng(1).permutation(20_000),
    }[order]
    assert not gnn.connected_components(20_000, np.stack([nodes[:-1], nodes[1:]])).any()


def test_an_event_without_nodes_has_no_tracks():
    """No nodes and no edges give no logits and no labels."""
    nothing = np.empty((2, 0), dtype=np.int64)
    logits = gnn.TrackGNN(default_weights()).logits(np.empty((0, 3), np.float32), nothing)
    assert (logits.shape, logits.dtype) == ((0,), np.float32)
    assert gnn.track_labels(0, nothing, logits).shape == (0,)


@settings(deadline=None, max_examples=60)
@given(graphs(), st.integers(0, 2**31))
def test_logits_are_those_of_the_definition(graph, seed):
    """On any graph the fast float32 network agrees with its definition in float64."""
    n, edges = graph
    features = np.random.default_rng(seed).uniform(-1, 1, (n, 3)).astype(np.float32)
    fast = gnn.TrackGNN(default_weights()).logits(features, edges)
    assert np.allclose(fast, reference.reference_logits(default_weights(), features, edges), rtol=1e-3, atol=1e-3)


def test_an_event_larger_than_a_block_is_classified_whole():
    """Edges are classified in blocks, and where a block ends cannot be seen in the answer."""
    rng = np.random.default_rng(3)
    features = rng.uniform(-1, 1, (2000, 3)).astype(np.float32)
    edges = rng.integers(0, 2000, (2, 2 * gnn.EDGE_BLOCK + 1))
    fast = gnn.TrackGNN(default_weights()).logits(features, edges)
    assert np.allclose(fast, reference.reference_logits(default_weights(), features, edges), rtol=1e-3, atol=1e-3)


def test_a_real_event_has_the_tracks_of_the_service():
    """With the trained weights a real event gives the logits of the original service and its 37 tracks."""
    event = arrays(SHARED / "exatrkx" / "event_e1000.npz")
    network = gnn.TrackGNN(arrays(SHARED / "exatrkx" / "gnn_weights.npz"))
    points, edges = event["spacepoints"], event["edges"]
    logits = network.logits(points, edges)
    labels = gnn.track_labels(len(points), edges, logits)
    assert np.abs(logits - event["gnn_logits"]).max() < 5e-4
    assert (1 / (1 + np.exp(-logits)) > gnn.SCORE_CUT).sum() == 457
    assert labels.max() + 1 == 37
    assert (np.bincount(labels) > 1).sum() == 32


@pytest.mark.parametrize(("wrong", "named"), [(40, "EDGES[1, 2] = 40"), (-1, "EDGES[1, 2] = -1")])
def test_an_edge_to_nowhere_is_named(wrong, named):
    """An edge whose end is no node is refused with its place and value; right edges are not."""
    edges = np.array([[0, 1, 2], [3, 4, 39]])
    assert gnn.check_edges(edges, 40) == ""
    edges[1, 2] = wrong
    assert named in gnn.check_edges(edges, 40)
    assert "0..39" in gnn.check_edges(edges, 40)


def test_wrong_weights_are_refused_by_name():
    """A checkpoint that misses an array, or has one of another shape, is refused naming it and the shape expected."""
    weights = default_weights()
    weights["node_network.network.3.bias"] = np.zeros(63, np.float32)
    with pytest.raises(ValueError, match=r"node_network\.network\.3\.bias.*\(64,\), got \(63,\)"):
        gnn.TrackGNN(weights)
    del weights["node_network.network.3.bias"]
    with pytest.raises(ValueError, match=r"no array 'node_network\.network\.3\.bias'"):
        gnn.TrackGNN(weights)


def test_the_default_weights_are_those_of_their_script():
    """What `make_weights.py` makes is what the folder ships, bit by bit."""
    made = load(TRACK_GNN / "make_weights.py").make_weights()
    shipped = default_weights()
    assert {name: array.shape for name, array in shipped.items()} == gnn.weight_shapes()
    assert all(made[name].tobytes() == shipped[name].tobytes() for name in gnn.weight_shapes())


def test_the_track_canary_is_answered_and_not_trivial():
    """The shipped network gives its known answer, in which edges pass and fail and tracks are longer than a point."""
    known = arrays(TRACK_GNN / "canary.npz")
    features, edges = known["input.FEATURES"], known["input.EDGES"]
    logits = gnn.TrackGNN(default_weights()).logits(features, edges)
    labels = gnn.track_labels(len(features), edges, logits)
    assert np.abs(logits - known["output.LOGITS"]).max() < known["atol"]
    assert labels.tolist() == known["output.LABELS"].tolist()
    assert 1 < (np.bincount(labels) > 1).sum() < labels.max() + 1


def test_the_mass_canary_is_an_invariant_mass():
    """The known masses, made by boosting decays at rest, are those of E² - p²."""
    known = arrays(SHIPPED / "zmumu_mass" / "canary.npz")
    energy, *momentum = (known["input.P"][:, :4] + known["input.P"][:, 4:]).T
    mass = np.sqrt(energy**2 - np.square(momentum).sum(axis=0))
    assert np.allclose(mass, known["output.MASS"][:, 0], rtol=float(known["rtol"]), atol=0.0)


def test_the_z_peak_of_real_events():
    """The example's fit of the real di-muon masses gives the known peak, uncertainties not rescaled."""
    path = SHARED / "root" / "uproot-Zmumu.root"
    if not path.exists():
        pytest.skip(f"{path} is absent: the real data lie beside the project, not in it")
    with uproot.open(path) as file:
        counts, edges = np.histogram(file["events"]["M"].array(library="np"), bins=40, range=(80, 100))
    result = zmumu.fit_peak((edges[1:] + edges[:-1]) / 2, counts.astype(float))
    values, errors = result["parameters"], result["errors"]
    assert (values["mu"], values["sigma"]) == pytest.approx((90.711, 2.263), abs=5e-3)
    assert (errors["mu"], errors["sigma"]) == pytest.approx((0.065, 0.061), abs=1e-3)


@pytest.mark.parametrize("folder", EVERY, ids=name_of)
def test_a_configuration_is_what_triton_reads(folder):
    """Every configuration parses as Triton's own message, bears its folder's name and leaves the device to the site."""
    for path in [folder / "config.pbtxt", folder / "configs" / "embedded.pbtxt"]:
        if not path.exists():
            assert folder not in models(SHIPPED)
            continue
        read = config(path)
        assert read.name == folder.name
        assert [group.kind for group in read.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_AUTO]


@pytest.mark.parametrize("folder", models(SHIPPED), ids=name_of)
def test_a_shipped_model_is_the_same_in_both_servers(folder):
    """The stock container's configuration and the embedded one have one interface, and neither mixes requests."""
    stock, embedded = config(folder / "config.pbtxt"), config(folder / "configs" / "embedded.pbtxt")
    assert embedded.backend == "python"
    assert (folder / "1" / "model.py").is_file()
    for one in (stock, embedded):
        assert not one.HasField("dynamic_batching")
    for part in ("max_batch_size", "input", "output"):
        assert getattr(stock, part) == getattr(embedded, part)


@pytest.mark.parametrize("folder", WITH_CANARY, ids=name_of)
def test_a_canary_fits_its_configuration(folder):
    """A canary has exactly the tensors its configuration names, in their types and shapes, all of one batch."""
    known, wanted = arrays(folder / "canary.npz"), config(folder / "configs" / "embedded.pbtxt")
    tensors = {f"input.{t.name}": t for t in wanted.input} | {f"output.{t.name}": t for t in wanted.output}
    assert set(known) - {"rtol", "atol"} == set(tensors)
    batches = set()
    for name, tensor in tensors.items():
        array, dims = known[name], list(tensor.dims)
        assert array.dtype == DTYPES[model_config_pb2.DataType.Name(tensor.data_type)]
        if wanted.max_batch_size:
            batches.add(len(array))
            dims.insert(0, -1)
        assert array.ndim == len(dims)
        assert all(want in (-1, have) for want, have in zip(dims, array.shape, strict=True))
    assert len(batches) == bool(wanted.max_batch_size)
    assert all(0 < batch <= wanted.max_batch_size for batch in batches)


def test_the_batch_sensitive_twins_differ_in_their_configuration_alone():
    """What the server's batching changes is seen by one model file under two configurations."""
    alone, merged = (PROJECT / "tests" / "models" / f"batch_sensitive{end}" for end in ("", "_dynamic"))
    assert (alone / "1" / "model.py").read_text() == (merged / "1" / "model.py").read_text()
    assert not config(alone / "configs" / "embedded.pbtxt").HasField("dynamic_batching")
    assert config(merged / "configs" / "embedded.pbtxt").HasField("dynamic_batching")


def test_the_c_backend_builds_without_a_warning(tmp_path):
    """The backend in C compiles as its head says and exports what Triton calls."""
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("gcc and nm are needed to build the backend")
    library = tmp_path / "libtriton_identity_c.so"
    source = PROJECT / "tests" / "backends" / "identity_c" / "identity.c"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(source)], check=True)
    symbols = subprocess.run(["nm", "-D", "--defined-only", str(library)], check=True, capture_output=True, text=True)
    exported = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert {"TRITONBACKEND_Initialize", "TRITONBACKEND_ModelInstanceExecute"} <= exported
