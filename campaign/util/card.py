"""A card: a title, facts and tables of an object, as HTML for a notebook and as text for everything else.

The HTML holds no script and loads nothing. Text takes the colour of the page it stands on, so it is readable on a light
and on a dark one; where styles are removed, the tables remain.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

WIDTH = 20  # characters of a bar in text

STYLE = """<style>
.campaign-card{--campaign-mark:#2f74e0;--campaign-good:#1a7f37;--campaign-bad:#c62828;--campaign-wait:#8a6100;
color:var(--jp-content-font-color1,var(--vscode-editor-foreground,inherit));font-size:13px;line-height:1.4}
@media (prefers-color-scheme:dark){.campaign-card{--campaign-mark:#6ea8fe;--campaign-good:#57c078;
--campaign-bad:#ff8a80;--campaign-wait:#e0b050}}
[data-jp-theme-light=true] .campaign-card{--campaign-mark:#2f74e0;--campaign-good:#1a7f37;--campaign-bad:#c62828;
--campaign-wait:#8a6100}
[data-jp-theme-light=false] .campaign-card{--campaign-mark:#6ea8fe;--campaign-good:#57c078;--campaign-bad:#ff8a80;
--campaign-wait:#e0b050}
.campaign-card table{border-collapse:collapse;margin:6px 0;font-size:inherit;color:inherit}
.campaign-card th,.campaign-card td{text-align:left;padding:2px 10px 2px 0;vertical-align:top;border:0;background:none}
.campaign-card thead th{border-bottom:1px solid currentColor}
.campaign-card .campaign-bar{display:inline-block;width:110px;height:9px;border:1px solid currentColor;margin-right:6px}
.campaign-card .campaign-bar span{display:block;height:9px;background:var(--campaign-mark)}
.campaign-card .campaign-good{color:var(--campaign-good)}.campaign-card .campaign-bad{color:var(--campaign-bad)}
.campaign-card .campaign-wait{color:var(--campaign-wait)}
.campaign-card pre{background:none;color:inherit;margin:4px 0;white-space:pre-wrap}
</style>"""


@dataclass(frozen=True)
class Bar:
    """A part of a whole, shown as a bar with its words beside it.

    Attributes:
        part: From 0 to 1.
        words: What stands beside it.
    """

    part: float
    words: str

    def html(self) -> str:
        """The bar and its words."""
        width = f"{100 * min(1.0, max(0.0, self.part)):.1f}"
        return f'<span class="campaign-bar"><span style="width:{width}%"></span></span>{html.escape(self.words)}'

    def text(self) -> str:
        """The bar of characters and its words."""
        full = int(WIDTH * min(1.0, max(0.0, self.part)))
        return f"[{'#' * full}{'.' * (WIDTH - full)}] {self.words}"


Cell: TypeAlias = "str | Bar"


@dataclass(frozen=True)
class Table:
    """Rows under a head.

    Attributes:
        head: Names of the columns.
        rows: One cell for each column.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def html(self) -> str:
        """An HTML table."""
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.head)
        body = "".join(f"<tr>{''.join(f'<td>{_html(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def lines(self) -> list[str]:
        """Columns of text."""
        rows = [list(self.head), *([_text(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.head))]
        return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


@dataclass
class Card:
    """The contents of an object's card.

    Attributes:
        title: What it is.
        state: One word on how it is, coloured by `tone`.
        tone: ``good``, ``bad``, ``wait`` or empty.
        facts: Short ones by name, in one line each.
        tables: By heading.
        notes: Sentences.
        log: Lines as they are.
    """

    title: str
    state: str = ""
    tone: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    notes: Sequence[str] = ()
    log: Sequence[str] = ()

    def html(self) -> str:
        """A piece of a page."""
        state = f' <span class="campaign-{self.tone or "plain"}">{html.escape(self.state)}</span>' if self.state else ""
        parts = [f"<div><b>{html.escape(self.title)}</b>{state}</div>"]
        if self.facts:
            facts = [(html.escape(name), html.escape(value)) for name, value in self.facts.items()]
            told = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in facts)
            parts.append(f"<table><tbody>{told}</tbody></table>")
        for heading, table in self.tables.items():
            if table.rows:
                parts.append(f"<div>{html.escape(heading)}</div>{table.html()}")
        parts += [f"<div>{html.escape(note)}</div>" for note in self.notes]
        if self.log:
            parts.append(f"<pre>{html.escape(chr(10).join(self.log))}</pre>")
        return f'<div class="campaign-card">{STYLE}{"".join(parts)}</div>'

    def text(self) -> str:
        """Lines."""
        found = [f"{self.title}: {self.state}" if self.state else self.title]
        width = max(map(len, self.facts), default=0)
        found += [f"  {name:<{width}}  {value}" for name, value in self.facts.items()]
        for heading, table in self.tables.items():
            if table.rows:
                found += [f"  {heading}", *(f"    {line}" for line in table.lines())]
        return "\n".join([*found, *(f"  {note}" for note in self.notes), *(f"  {line}" for line in self.log)])


class Shown:
    """An object that shows its card in a notebook, and the card's text in a console of IPython."""

    def _card(self) -> Card:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return self._card().html()

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(self._card().text())


def _html(cell: Cell) -> str:
    return cell.html() if isinstance(cell, Bar) else html.escape(cell)


def _text(cell: Cell) -> str:
    return cell.text() if isinstance(cell, Bar) else cell
