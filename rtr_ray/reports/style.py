"""How pages look: colours that most eyes tell apart, on light and on dark, and everything around them.

The palette is that of Okabe and Ito (2008), its yellow and sky blue changed so that a thin line is seen on white.
"""

from __future__ import annotations

LIGHT = ("#0067b0", "#c9560a", "#00815c", "#b0487f", "#7a5cc2", "#8a6d00", "#3f8fb5", "#5b6570")
DARK = ("#62b3f5", "#f59a52", "#3ccf9f", "#ee8fc2", "#b9a3f5", "#e3c64a", "#8fd3f0", "#a9b4bf")
INK = "#6b7683"


def _slots(colours: tuple[str, ...]) -> str:
    return "".join(f"--c{number}:{colour};" for number, colour in enumerate(colours))


_LIGHT = f"--ink:#1d2329;--soft:#586370;--rule:#d8dde3;--paper:#ffffff;--panel:#f4f6f8;--cx:{INK};"
_DARK = "--ink:#e6eaee;--soft:#a3aebb;--rule:#3a434d;--paper:#14181c;--panel:#1e242a;--cx:#8793a0;"

CSS = (
    f":root{{color-scheme:light dark;{_LIGHT}--good:#00704f;--bad:#a83c00;{_slots(LIGHT)}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}--good:#3ccf9f;--bad:#f59a52;{_slots(DARK)}}}}}"
    f"@media print{{:root{{color-scheme:light;{_LIGHT}--good:#00704f;--bad:#a83c00;{_slots(LIGHT)}}}}}"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.2rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0 .6rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.2rem 0 .4rem}
p,li{max-width:46rem;overflow-wrap:anywhere}
code{font:.88em/1.45 ui-monospace,"DejaVu Sans Mono",monospace;background:var(--panel);padding:.1em .3em;border-radius:3px;
overflow-wrap:anywhere}
.verdict{border-left:.35rem solid var(--good);background:var(--panel);padding:.7rem .9rem;font-size:1.1rem;margin:.8rem 0}
.verdict.no{border-color:var(--bad)}
.verdict p{margin:0;max-width:none}
.note{color:var(--soft);font-size:.92rem;margin:.3rem 0}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.6rem;margin:1rem 0;padding:0}
.facts div{background:var(--panel);padding:.5rem .7rem;border-radius:4px}
.facts dt{color:var(--soft);font-size:.82rem}
.facts dd{margin:0;font-size:1.15rem;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
figure{margin:.6rem 0 1rem}
figcaption{color:var(--soft);font-size:.92rem;max-width:46rem}
svg{display:block;width:100%;height:auto}
svg.narrow{display:none}
ul.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.15rem 1rem;padding:0;margin:.2rem 0 .4rem;font-size:.88rem}
ul.legend li{display:flex;align-items:center;gap:.4rem}
ul.legend svg{width:1.5rem;flex:none}
.table{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;min-width:60%}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{color:var(--soft);font-weight:600;vertical-align:bottom;white-space:normal}
th:first-child,td:first-child{text-align:left;padding-left:0}
td.left,th.left{text-align:left}
tr.strong td{font-weight:600}
footer{color:var(--soft);font-size:.82rem;margin-top:2.5rem;border-top:1px solid var(--rule);padding-top:.6rem}
.grid{stroke:var(--rule);stroke-width:1}
.axis{stroke:var(--soft);stroke-width:1}
text{font:12px system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--ink)}
text.tick{fill:var(--soft);font-size:11px}
text.label{fill:var(--soft)}
text.name{paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.dashed{stroke-dasharray:6 4}
.band{fill-opacity:.16;stroke:none}
.area{stroke:var(--paper);stroke-width:.6}
.dot{stroke:var(--paper);stroke-width:1}
.hollow{fill:var(--paper);stroke-width:2}
"""
    + "".join(f".s{n}{{stroke:var(--c{n})}}.f{n}{{fill:var(--c{n})}}" for n in (*range(8), "x"))
    + """
@media (max-width:34rem){svg.wide{display:none}svg.narrow{display:block}main{padding:.8rem .8rem 2rem}
th,td{padding:.25rem .35rem}table{font-size:.8rem}
table.stack thead{display:none}
table.stack,table.stack tbody,table.stack tr,table.stack td{display:block;width:100%}
table.stack tr{border-bottom:1px solid var(--rule);padding:.4rem 0}
table.stack td{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.08rem 0;white-space:normal;text-align:right}
table.stack td:first-child{font-weight:600;text-align:left}
table.stack td:not(:first-child)::before{content:attr(data-name);color:var(--soft);text-align:left}}
@media print{svg.wide{display:block!important}svg.narrow{display:none!important}main{max-width:none;padding:0}
figure,.verdict,tr,.facts div{break-inside:avoid}h2{break-after:avoid}.table{overflow:visible}
body{font-size:10.5pt;-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
)
