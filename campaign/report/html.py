"""Writes the report as one page of HTML: no script, nothing from elsewhere, well formed as XML too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from campaign.histogram.svg import escaped
from campaign.report import gantt, plot
from campaign.report.advice import duration, hours, hours_table, summary
from campaign.report.gantt import Timeline
from campaign.report.profile import Profile
from campaign.report.report import Report
from campaign.report.spectra import Figure
from campaign.report.style import STYLE
from campaign.report.timing import AHEAD, RUN, WAIT, WRITE
from campaign.util.messages import counted

MOST_ROWS = 200  # of a table
MOST_TEXT = 6000  # characters of one log or error
FULL, COARSE = 120, 40  # bins of a figure; fewer where there are many figures
MANY = 120  # figures from which on they are drawn with fewer bins
MOST_BYTES = 3 << 20  # of all figures of histograms


@dataclass(frozen=True)
class Failure:
    """A file or server that failed.

    Attributes:
        what: Which.
        why: Its error.
        tail: The end of its log.
    """

    what: str
    why: str
    tail: str = ""


@dataclass(frozen=True)
class Artefact:
    """A plot or table of a reduce stage.

    Attributes:
        name: As in the report.
        link: Its path from the page.
        picture: A ``data:`` URL; empty: it is no picture, or too large.
        text: The content of a small text file.
    """

    name: str
    link: str
    picture: str = ""
    text: str = ""


@dataclass(frozen=True)
class Content:
    """The contents of the page that are not in the report.

    Attributes:
        figures: Of the histograms.
        others: Outputs that are no histograms, in words or as small tables: ``(output, text)``.
        undrawn: Outputs that could not be drawn, and why.
        artefacts: Plots and tables.
        timeline: Of servers and workers.
        servers: Name, seconds that it was ready, seconds that it computed.
        slowest: The slowest tasks: ``file``, ``dataset``, ``stages``, ``seconds``, ``worker``.
        failures: Files and servers that failed.
        recipe: The campaign file.
        manifest: The manifest; empty where the run is not complete.
        date: When the run began.
    """

    figures: Sequence[Figure] = ()
    others: Sequence[tuple[str, str]] = ()
    undrawn: Mapping[str, str] = field(default_factory=dict)
    artefacts: Sequence[Artefact] = ()
    timeline: Timeline = field(default_factory=lambda: Timeline(0.0))
    servers: Sequence[tuple[str, float, float]] = ()
    slowest: Sequence[Mapping[str, Any]] = ()
    failures: Sequence[Failure] = ()
    recipe: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    date: str = ""


def page(report: Report, content: Content) -> str:
    """The whole page."""
    sections = [(name, "".join(body)) for name, body in _sections(report, content)]
    sections = [(name, body) for name, body in sections if body]
    links = " ".join(f'<a href="#{_anchor(name)}">{escaped(name)}</a>' for name, _ in sections)
    bodies = "".join(f'<section id="{_anchor(n)}"><h2>{escaped(n)}</h2>{body}</section>' for n, body in sections)
    title = f"campaign {report.campaign}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{escaped(report.campaign)} "
        f'<span class="status {escaped(report.status)}">{escaped(report.status)}</span></h1>'
        f'<p class="dim">{escaped(content.date)} · <code>{escaped(report.run_dir)}</code></p>'
        + "".join(f'<p class="lead">{_code_marks(sentence)}</p>' for sentence in summary(report))
        + f"<nav>{links}</nav></header><main>{bodies}</main></body></html>\n"
    )


def _sections(report: Report, content: Content) -> Iterator[tuple[str, Iterable[str]]]:
    yield "Notes", _notes(report)
    yield "Failures", _failures(report, content)
    yield "Histograms", _histograms(content)
    yield "Figures and tables of stages", _artefacts(content)
    yield "Timeline", [gantt.draw(content.timeline)]
    yield "Where the time went", _time(report, content)
    yield "Rows by the rung that answered", _rungs(report)
    yield "Slowest files", _slowest(content)
    yield "Datasets", _datasets(report)
    yield "Servers", _servers(report)
    yield "Other outputs", _others(content)
    yield "Outputs and digests", _outputs(report, content)
    yield "Versions", _versions(report, content)
    yield "Campaign file", [f"<pre>{escaped(content.recipe)}</pre>"] if content.recipe else []


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _code_marks(sentence: str) -> str:
    """Text whose parts between backticks are code."""
    parts = escaped(sentence).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], most: int = MOST_ROWS) -> str:
    """A table; numbers stand at the right. A cell that is a `Markup` stays as it is."""
    every = list(rows)
    numbers = [all(isinstance(r[i], (int, float)) for r in every) and bool(every) for i in range(len(heads))]
    styles = [' class="n"' if n else "" for n in numbers]
    head = "".join(f"<th{style}>{escaped(h)}</th>" for h, style in zip(heads, styles, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{style}>{_cell(c)}</td>" for c, style in zip(row, styles, strict=True)) + "</tr>"
        for row in every[:most]
    )
    more = f'<p class="note">{len(every) - most:,} more are in report.json.</p>' if len(every) > most else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}'


class Markup(str):
    """HTML that is no text."""


def _cell(value: Any) -> str:
    if isinstance(value, Markup):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escaped("unknown" if value is None else value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _bar(share: float) -> Markup:
    said = "&lt; 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"
    return Markup(f'<span class="bar" style="width:{max(0.0, min(1.0, share)) * 12:.2f}rem"></span> {said}')


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT // 2]}\n[...]\n{text[-MOST_TEXT // 2 :]}"


def _notes(report: Report) -> Iterator[str]:
    if report.limit is not None:
        first = f"only the first {report.limit:,} rows of each file were read"
        yield f'<p class="warn">A try: {first}. It is no result of the campaign.</p>'
    if not report.reproducible:
        yield '<p class="warn">This run is not reproducible; the notes below say why.</p>'
    for warning in report.warnings[:MOST_ROWS]:
        yield f'<p class="warn">{escaped(_cut(warning))}</p>'


def _failures(report: Report, content: Content) -> Iterator[str]:
    for error in report.errors[:50]:
        first, _, rest = error.partition("\n")
        yield f"<h3>{escaped(_cut(first))}</h3>" + (f"<pre>{escaped(_cut(rest))}</pre>" if rest else "")
    if len(report.errors) > 50:
        yield f'<p class="note">{len(report.errors) - 50:,} more errors are in report.json.</p>'
    if report.lost:
        yield f"<h3>{escaped(counted(len(report.lost), 'lost file'))}</h3>"
        heads = ("file", "dataset", "entries", "sum of weights", "error")
        yield table(
            heads, [[x["file"], x["dataset"], x["entries"], x["sum_of_weights"], x["error"]] for x in report.lost]
        )
    for failure in content.failures:
        tail = f"<pre>{escaped(_cut(failure.tail))}</pre>" if failure.tail else ""
        yield f"<details><summary>{escaped(failure.what)}: {escaped(_cut(failure.why))}</summary>{tail}</details>"


def _histograms(content: Content) -> Iterator[str]:
    size = 0
    parts: list[str] = []
    filled = [figure for figure in content.figures if not figure.empty]
    for figure in filled:
        bins = FULL if len(filled) <= MANY else COARSE
        drawn = plot.draw(figure, bins if size < MOST_BYTES / 2 else 16)
        if size + len(drawn) > MOST_BYTES:
            left = len(filled) - len(parts)
            yield f'<p class="warn">{left} more histograms are not drawn, to keep the page small.</p>'
            break
        size += len(drawn)
        parts.append(drawn)
    if parts:
        yield f'<div class="grid">{"".join(parts)}</div>'
    empty = [figure for figure in content.figures if figure.empty]
    if empty:
        outputs = escaped(" ".join(dict.fromkeys(name for figure in empty for name in figure.outputs)))
        names = escaped("; ".join(figure.title for figure in empty))
        yield f'<p class="note" data-outputs="{outputs}">Without entries, and not drawn: {names}.</p>'
    for output, why in content.undrawn.items():
        yield f'<p class="warn">{escaped(output)} is not drawn: {escaped(why)}</p>'


def _artefacts(content: Content) -> Iterator[str]:
    pictures = [
        f'<figure><figcaption>{escaped(a.name)}</figcaption><img alt="{escaped(a.name)}" src="{a.picture}"/></figure>'
        for a in content.artefacts
        if a.picture
    ]
    if pictures:
        yield f'<div class="grid pictures">{"".join(pictures)}</div>'
    for a in content.artefacts:
        if a.text:
            yield f"<details><summary>{escaped(a.name)}</summary><pre>{escaped(a.text)}</pre></details>"
    links = [
        f'<a href="{escaped(a.link)}">{escaped(a.name)}</a>' for a in content.artefacts if not a.picture and not a.text
    ]
    if links:
        yield f'<p class="note">In the run directory: {", ".join(links[:MOST_ROWS])}</p>'


def _others(content: Content) -> Iterator[str]:
    for output, said in content.others:
        name, shown = escaped(output), escaped(_cut(said))
        yield f'<details class="raw" data-outputs="{name}"><summary>{name}</summary><pre>{shown}</pre></details>'


def _time(report: Report, content: Content) -> Iterator[str]:
    if not report.profile:
        return
    profile = Profile.from_json(report.profile)
    if profile.tasks_s:
        whole_time = f"{counted(profile.workers, 'worker')} for {duration(profile.span_s)}"
        yield f"<p>{whole_time}. Seconds are summed over workers.</p>"
        rows = [
            [stage, *(float(spent.get(key, 0.0)) for key in (RUN, WAIT, WRITE, AHEAD))]
            for stage, spent in sorted(profile.stages.items(), key=lambda item: -sum(item[1].values()))
        ]
        yield table(("stage", "at work [s]", "waiting [s]", "writing [s]", "in the background [s]"), rows)
        sums = profile.sums()
        whole = sum(sums.values()) or 1.0
        shares = [[name, seconds, _bar(seconds / whole)] for name, seconds in sorted(sums.items(), key=lambda i: -i[1])]
        yield "<h3>Worker seconds by use</h3>" + table(("use", "seconds", "share"), shares)
    hours_of = hours_table(report.profile, list(content.servers))
    used = [
        [name, hours(busy), hours(idle), _bar(busy / ((busy + idle) or 1.0)) if busy else "not measured"]
        for name, busy, idle in hours_of
    ]
    yield "<h3>Hours busy and idle</h3>" + table(("what", "busy", "idle", "busy share"), used)


def _rungs(report: Report) -> Iterator[str]:
    total = sum(report.rows.values())
    if total:
        rows = [[rung.replace("_", " "), n, _bar(n / total)] for rung, n in report.rows.items()]
        yield table(("rung", "rows", "share"), rows)


def _slowest(content: Content) -> Iterator[str]:
    if content.slowest:
        heads = ("file", "dataset", "stages", "seconds", "worker")
        rows = [
            [
                x.get("file"),
                x.get("dataset"),
                ", ".join(map(str, x.get("stages", ()))),
                x.get("seconds"),
                x.get("worker"),
            ]
            for x in content.slowest
        ]
        yield table(heads, rows) + '<p class="note">Each row is the longest task on its file.</p>'


def _datasets(report: Report) -> Iterator[str]:
    if report.datasets:
        yield table(("dataset", "files", "events"), [[n, d["files"], d["events"]] for n, d in report.datasets.items()])


def _servers(report: Report) -> Iterator[str]:
    if report.servers:
        rows = []
        for s in report.servers:
            answers = "; ".join(
                f"{m}: {n:,} rows in {e:,} batches" for m, (n, e) in (s.get("statistics") or {}).items()
            )
            rows.append([s.get("name"), s.get("host"), s.get("state"), s.get("ready_s"), answers, s.get("reason", "")])
        yield table(("server", "host", "state", "ready after [s]", "answers", "why it ended"), rows)


def _outputs(report: Report, content: Content) -> Iterator[str]:
    rows = [
        [name, o["kind"], Markup(f"<code>{escaped(o['sha256'])}</code>"), "incomplete" if o.get("incomplete") else ""]
        for name, o in report.outputs.items()
    ]
    if rows:
        yield table(("output", "kind", "SHA-256 of the content", ""), rows, most=1000)
    noted = [[name, "; ".join(o["notes"])] for name, o in report.outputs.items() if o.get("notes")]
    if noted:
        yield "<h3>Notes of outputs</h3>" + table(("output", "note"), noted)
    if content.manifest:
        hashed = counted(len(content.manifest.get("inputs", {}).get("hashed", {})), "input file")
        plan = escaped(content.manifest.get("plan", ""))
        yield (
            f'<p class="note">manifest.json has the SHA-256 of {hashed} and of every file of the outputs. '
            f"Plan: <code>{plan}</code></p>"
        )


def _versions(report: Report, content: Content) -> Iterator[str]:
    rows = [[name, version] for name, version in report.versions.items()]
    rows += [[f"model {name}", f"version {about.get('version')}"] for name, about in report.models.items()]
    code = content.manifest.get("stages", {})
    rows += [
        [f"code of stage {name}", Markup(f"<code>{escaped(c.get('code', ''))}</code>")] for name, c in code.items()
    ]
    if rows:
        yield table(("what", "version or digest"), rows)
