"""The source of a campaign's events: a TTree or RNTuple, read in row ranges, and only the branches that are used."""

from __future__ import annotations

import ast
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from keyword import iskeyword
from typing import Any

import awkward as ak
import fsspec
import numpy as np
import uproot
from campaign.stages.branches import branches_of

from campaign.errors import InputError
from campaign.protocols import WEIGHT
from campaign.util.messages import article, unknown


class RootSource:
    """One open file. Branches are read when a stage first touches them; from then on they are read with each range.

    Args:
        url: Path or URL, anything uproot opens.
        tree: Name of the TTree or RNTuple.
        branches: ``{name the stage uses: branch in the file}`` where they differ.

    Attributes:
        entries: Entries of the tree.

    Raises:
        InputError: The file cannot be opened, or has no such tree or branch.
    """

    def __init__(self, url: str, tree: str, branches: Mapping[str, str]) -> None:
        self.url, self.branches = url, dict(branches)
        self._touched: set[str] = set()
        try:
            self._file = _open(url)
        except Exception as error:
            raise InputError.unreadable(url, error) from error
        try:
            self._tree = self._find(tree)
        except BaseException:
            self._file.close()
            raise
        self.entries = int(self._tree.num_entries)

    def _find(self, name: str) -> Any:
        try:
            tree = self._file[name]
        except uproot.KeyInFileError:
            have = sorted({k.split(";")[0] for k, c in self._file.classnames().items() if "Tree" in c or "NTuple" in c})
            if not have:  # as a file has whose directory was lost
                raise InputError.unreadable(self.url, LookupError(f"it holds no tree at all, so no '{name}'")) from None
            raise InputError.described(unknown(name, have, "trees"), self.url, ("tree",)) from None
        except Exception as error:
            raise InputError.unreadable(self.url, error) from error
        if not hasattr(tree, "num_entries"):
            raise InputError.described(f"'{name}' is {article(type(tree).__name__)}, not a tree", self.url, ("tree",))
        try:
            self._branches = branches_of(tree, self.url)
        except Exception as error:
            raise InputError.unreadable(self.url, error) from error
        self.names = self._branches.names
        for use, branch in self.branches.items():
            found = self._branches.find(branch)
            if found is None:
                told = unknown(branch, self.names, f"branches of {name}")
                raise InputError.described(told, self.url, ("branches", use))
            self.branches[use] = found
        return tree

    @property
    def clusters(self) -> Sequence[int]:
        """Entries at which the baskets (TTree) or the pages' clusters (RNTuple) of all branches begin, ascending."""
        try:
            if isinstance(self._tree, uproot.TTree):
                return [int(entry) for entry in self._tree.common_entry_offsets()]
            return [int(c.num_first_entry) for c in self._tree.cluster_summaries]
        except Exception:  # noqa: BLE001  library boundary: branches that no stage may use; ranges may begin anywhere
            return []

    def read(self, start: int, stop: int) -> Any:
        """Rows ``start <= i < stop`` as an awkward record array."""
        known = sorted({self.branches.get(n, n) for n in self.touched} & set(self.names))
        rest = [n for n in self.names if n not in set(known)]
        back = {branch: use for use, branch in self.branches.items()}

        def touch(name: str) -> None:
            self._touched.add(back.get(name, name))

        try:
            # What was touched before is read in one go, its baskets together; the rest stays virtual.
            columns = self._branches.eager(known, start, stop) if known else {}
            columns |= self._branches.lazy(rest, start, stop, touch)
        except InputError:
            raise
        except Exception as error:
            raise InputError.unreadable(self.url, error) from error
        # A branch whose name is taken by ctx.weight is known by the other name alone.
        hidden = {WEIGHT} & set(self.branches.values())
        named = {n: c for n, c in columns.items() if n not in self.branches and n not in hidden}
        named |= {use: columns[branch] for use, branch in self.branches.items()}
        return ak.Array(ak.contents.RecordArray(list(named.values()), list(named), length=stop - start))

    @property
    def touched(self) -> set[str]:
        """Branches (by the name the stages use) that were read until now, all or lazily; more may be put in."""
        return self._touched

    def weight(self, expression: str, batch: Any) -> Any:
        """A per-event expression of branches, float64, shape (len(batch),).

        Raises:
            InputError: It is no expression of this file's branches, or not one number per event.
        """
        where = f"weight '{expression}' in {self.url}"
        try:
            value = evaluate(expression, batch)
        except InputError as error:
            error.where = error.where or where  # of a branch that cannot be read: the file alone, as for any stage
            raise
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise InputError(str(error).splitlines()[0], where=where, remedy="correct 'weight'") from error
        if np.isscalar(value):
            return np.full(len(batch), value, np.float64)
        try:
            array = np.asarray(ak.to_numpy(value, allow_missing=False))
        except ValueError:
            raise InputError(f"is of type {ak.type(value)}, one number per event is needed", where=where) from None
        if array.shape != (len(batch),):
            raise InputError(f"gives shape {array.shape}, one number per event is needed", where=where)
        return array.astype(np.float64)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def _use_fast_zlib() -> None:
    """Decompress by `isal` where it is installed (the extra ``fast``): the same bytes in about half the time."""
    zlib = uproot.compression._decompress_ZLIB  # what reads; setting uproot.ZLIB.library changes nothing for it
    if find_spec("isal") is not None and zlib.library == "zlib":
        zlib.library = "isal"


_use_fast_zlib()


def _open(url: str) -> Any:
    if url.startswith(("http://", "https://")):
        system, path = fsspec.core.url_to_fs(url)
        if not system.info(path).get("partial"):
            # A server that cannot send parts of a file: it is fetched whole, into a file that has no name.
            whole = tempfile.TemporaryFile()  # noqa: SIM115  closed with the source
            with system.open(path, block_size=0) as remote:
                shutil.copyfileobj(remote, whole, 1 << 20)
            whole.seek(0)
            return uproot.open(whole, array_cache=None)
    # Plain reads of a local file take a fifth less of the CPU than fsspec's; a mapped file that shrinks kills a worker.
    local = {} if "://" in url else {"handler": uproot.source.file.MultithreadedFileSource, "num_workers": 1}
    # A mapping: a colon in the name is no path inside the file. No array is asked for twice: a cache would only grow.
    return uproot.open({url: None}, array_cache=None, **local)


_OPERATORS = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide, ast.Pow: np.power,
}  # fmt: skip


def evaluate(expression: str, batch: Any) -> Any:
    """Names, numbers, ``+ - * / **``, parentheses and ``branch[i]``, in float64; nothing else is understood or run.

    Raises:
        InputError: The expression is anything else, or names a branch there is not; or it is also the name of a branch.
    """
    text = expression.strip()
    try:
        body = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last three: null bytes, a thousand parentheses
        odd = [n for n in ak.fields(batch) if n and n in text and (not n.isidentifier() or iskeyword(n))]
        remedy = _mapped(max(odd, key=len)) if odd else "for example pdf_weight[7] or w_up / w_nominal"
        raise InputError("is no expression", remedy=remedy) from None
    if text in ak.fields(batch) and not isinstance(body, ast.Name):
        known = isinstance(body, (ast.BinOp, ast.UnaryOp, ast.Subscript, ast.Constant))
        said = "may mean the branch of that name, or an expression of others" if known else "is not understood"
        other = "; for the other meaning, set spaces otherwise" if known else ""
        raise InputError(f"'{text}' {said}", remedy=f"{_mapped(text)}{other}")
    return _value(body, text, batch)


def _no_entry(name: str, index: int, values: Any) -> InputError:
    if values.ndim < 2:
        return InputError(f"'{name}' has one number per event, and so no [{index}]", remedy=f"write {name}")
    lengths = ak.to_numpy(ak.num(values, axis=1))
    have = _between(int(lengths.min()), int(lengths.max())) if len(lengths) else "0"
    return InputError(
        f"[{index}] is out of range: '{name}' has {have} entries per event",
        remedy="correct the index; the first entry is [0]",
    )


def _between(fewest: int, most: int) -> str:
    return str(most) if fewest == most else f"{fewest} to {most}"


def _mapped(branch: str) -> str:
    """The way to a branch whose name is no word of an expression."""
    quoted = json.dumps(branch, ensure_ascii=False)
    return f"give the branch another name: branches: {{w: {quoted}}}, and write weight: w"


def _value(node: ast.expr, text: str, batch: Any) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.Name):
        name = ast.get_source_segment(text, node) or node.id  # node.id has other characters for some letters
        if name not in ak.fields(batch):
            raise InputError(unknown(name, ak.fields(batch), "branches"))
        return ak.values_astype(batch[name], np.float64)  # a product of uint8 branches would wrap around
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, text, batch), _value(node.right, text, batch))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, text, batch)
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and type(node.slice.value) is int:
        values, index = _value(node.value, text, batch), node.slice.value
        try:
            return values[:, index]
        except (IndexError, ValueError) as error:
            raise _no_entry(ast.get_source_segment(text, node.value) or text, index, values) from error
    part = ast.get_source_segment(text, node) or text
    remedy = _mapped(part) if part in ak.fields(batch) else "use branches, numbers, + - * / ** and [i]"
    raise InputError(f"'{part}' is not understood", remedy=remedy)
