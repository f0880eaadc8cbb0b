"""The style sheet of the report's page: light, dark and on paper."""

from __future__ import annotations

_STACK = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59")
_LINES = ("#d43d2f", "#2fa84a", "#a35be0", "#f08a24", "#1aa3aa", "#b98474", "#8a8f9c", "#e8459a")
_LIGHT = (
    "--fg:#1b1d20;--bg:#fff;--soft:#f3f4f6;--line:#d3d7dd;--dim:#59616d;--accent:#1d63b0;--data:#000;--good:#1c7c3a;"
    "--bad:#b3261e;--work:#3f90da;--serve:#2a8f3c;--start:#ffa90e;"
)
_DARK = (
    "--fg:#e6e7e9;--bg:#15171a;--soft:#212429;--line:#40464e;--dim:#a7aeb8;--accent:#86bdf7;--data:#fff;--good:#6fce8b;"
    "--bad:#ff8a80;--work:#5aa5ea;--serve:#58bd6c;--start:#ffbf4d;"
)
_COLOURS = "".join(
    [f".s{n}{{fill:{c};fill-opacity:.8}}.c{n}{{background:{c};opacity:.85}}" for n, c in enumerate(_STACK)]
    + [
        f".v{n}{{stroke:{c};fill:none;stroke-width:1.2}}.l{n}{{border-color:{c}!important}}"
        for n, c in enumerate(_LINES)
    ]
)

STYLE = (
    f":root{{{_LIGHT}color-scheme:light dark}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    """
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:1.2rem 1.4rem 4rem;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,"Segoe UI","DejaVu Sans",sans-serif}
h1{font-size:1.6rem;margin:.2rem 0}
h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid var(--line);padding-bottom:.2rem}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
a{color:var(--accent)}nav a{margin-right:1rem;white-space:nowrap}nav{line-height:1.9}
.lead{font-size:1.05rem;max-width:60rem}.dim,.note{color:var(--dim)}.note{font-size:.88rem}
.status{display:inline-block;padding:0 .6rem;border-radius:.8rem;border:1px solid currentColor;
font-size:.9rem;vertical-align:middle}
.complete{color:var(--good)}.failed,.incomplete,.interrupted{color:var(--bad)}
.warn{border-left:4px solid var(--start);background:var(--soft);padding:.4rem .8rem;margin:.5rem 0;
overflow-wrap:anywhere}
table{border-collapse:collapse;font-size:.9rem;max-width:100%}
th,td{text-align:left;padding:.22rem .8rem .22rem 0;border-bottom:1px solid var(--line);
vertical-align:top;overflow-wrap:anywhere}
th{color:var(--dim);font-weight:600;white-space:nowrap}
td{min-width:5.5rem}
td.n{min-width:0}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
code,pre{font:.82rem/1.45 ui-monospace,"DejaVu Sans Mono",monospace}code{overflow-wrap:anywhere}
pre{background:var(--soft);padding:.7rem .9rem;border-radius:.4rem;overflow-x:auto;
white-space:pre-wrap;overflow-wrap:anywhere;margin:.4rem 0}
details{margin:.5rem 0}summary{cursor:pointer;color:var(--accent)}
.bar{display:inline-block;height:.7rem;background:var(--work);vertical-align:middle;min-width:1px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(350px,1fr));gap:1.4rem 1.8rem}
.pictures{grid-template-columns:repeat(auto-fill,minmax(460px,1fr))}
figure{margin:0;min-width:0;break-inside:avoid}
figcaption{font-weight:600;font-size:.92rem;overflow-wrap:anywhere}
figure ul{margin:.1rem 0 0;padding:0;list-style:none;color:var(--dim);font-size:.8rem}
figure img{max-width:100%;height:auto;background:#fff;border-radius:.3rem;display:block;margin-top:.3rem}
.legend{font-size:.8rem;color:var(--dim);line-height:1.5;margin:.15rem 0}
.key{margin-right:.9rem;display:inline-block}
.key i{display:inline-block;width:.9rem;height:.7rem;margin-right:.35rem;vertical-align:-.05rem}
.key i.line{height:0;border-top:2px solid var(--dim);vertical-align:.2rem}
.key i.dot{width:.55rem;height:.55rem;border-radius:50%;background:var(--data)}
.key i.hatch{background:var(--fg);opacity:.25}
.key i.starting{background:var(--start)}
.key i.serving{background:var(--serve)}
.key i.working{background:var(--work)}
svg{width:100%;height:auto;display:block}svg text{fill:var(--fg);font-size:11px}svg .name{font-size:12px}
.frame{fill:none;stroke:var(--fg);stroke-width:1}.tick{stroke:var(--fg);stroke-width:1;fill:none}
.grid-lines,path.grid{stroke:var(--line);fill:none}
.total{stroke:var(--fg);stroke-width:1;fill:none}
.band{fill:var(--fg);fill-opacity:.22}
.one{stroke:var(--dim);stroke-dasharray:4 3;fill:none}
.varied{stroke:var(--dim);stroke-width:.8;fill:none}.bars{stroke:var(--data);stroke-width:1.1;fill:none}
.dots{stroke:var(--data);stroke-width:4.6;stroke-linecap:round;fill:none}
path.starting{fill:var(--start)}
path.serving{fill:var(--serve)}
path.working{fill:var(--work)}
path.reducing{fill:var(--dim)}
.key i.reducing{background:var(--dim)}
path.busy{fill:var(--work);fill-opacity:.45}
.mark{stroke:var(--fg);stroke-dasharray:2 3;fill:none}.number{font-weight:600}
ol.marks{font-size:.85rem;color:var(--dim);columns:3;margin:.3rem 0;padding-left:1.4rem}
"""
    + _COLOURS
    + "@media print{"
    + f":root{{{_LIGHT}color-scheme:light}}"
    + """body{max-width:none;padding:0;font-size:10.5pt}nav{display:none}a{color:inherit;text-decoration:none}
details:not(.raw)::details-content{content-visibility:visible;display:block;height:auto}
h2{break-after:avoid}table,pre,.warn{break-inside:auto}tr{break-inside:avoid}
.grid,.pictures{grid-template-columns:1fr 1fr;gap:.5rem 1rem}.grid svg{max-width:80mm}
figure img{max-width:84mm}
figcaption{font-size:8.5pt}.legend,figure ul{font-size:7pt;line-height:1.3}
pre,code{font-size:6.8pt}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
@page{size:A4;margin:14mm}
}"""
).replace("\n", "")
