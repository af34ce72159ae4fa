"""The look of the HTML page: one calm column, light and dark, a telephone's width and A4.

Every colour is a variable of one of the two palettes; a test counts their contrast.
"""

LIGHT = {
    "paper": "#ffffff",
    "panel": "#f4f6f8",
    "text": "#1b2126",
    "soft": "#52606b",
    "rule": "#d5dade",
    "yes": "#0a6b3d",
    "no": "#ab1f24",
    "undecided": "#7a5200",
    "c0": "#0060a8",
    "c1": "#b24700",
    "c2": "#00795c",
    "c3": "#a3327d",
    "c4": "#6f5600",
    "c5": "#5b4bc4",
    "c6": "#3d4852",
}
DARK = {
    "paper": "#14191d",
    "panel": "#1d242a",
    "text": "#e4e9ed",
    "soft": "#a3b0ba",
    "rule": "#3a444d",
    "yes": "#63d39b",
    "no": "#ff9d98",
    "undecided": "#eec36a",
    "c0": "#6db7f2",
    "c1": "#f5a068",
    "c2": "#56cfab",
    "c3": "#ec93cb",
    "c4": "#e2c65c",
    "c5": "#b5aaff",
    "c6": "#b4c0ca",
}
_RULES = """
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--paper); margin: 0 auto;
  max-width: 50rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.1rem; font-weight: 600; margin: .2rem 0; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 2rem 0 .4rem; }
p { margin: .4rem 0; } .soft, small, figcaption p { color: var(--soft); font-size: .85rem; }
.verdict { background: var(--panel); border-left: .35rem solid var(--text); padding: .8rem 1rem;
  margin: 1rem 0; }
.verdict p { margin: .25rem 0; } .verdict .first { font-size: 1.25rem; line-height: 1.35; font-weight: 600; }
.yes { border-color: var(--yes); } .yes .first { color: var(--yes); }
.no { border-color: var(--no); } .no .first { color: var(--no); }
.undecided { border-color: var(--undecided); } .undecided .first { color: var(--undecided); }
dl { display: grid; grid-template-columns: minmax(6rem, 9rem) 1fr; gap: .25rem .8rem; font-size: .9rem;
  margin: .8rem 0; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; } code { font-size: .8rem; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
.columns3 thead th:first-child { width: 50%; } .columns4 thead th:first-child { width: 36%; }
.columns4 thead th:nth-child(3) { width: 17%; } .columns5 thead th:first-child { width: 30%; }
.columns5 thead th:nth-child(4) { width: 15%; } thead th:last-child { width: 2.2rem !important; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0;
  border-top: 1px solid var(--rule); }
thead th { border-top: 0; color: var(--soft); font-weight: 400; font-size: .85rem; vertical-align: bottom; }
tbody th { font-weight: 400; } tr.head th { font-weight: 600; padding-top: .7rem; }
tr.head + tr > * { border-top: 0; }
td, th { overflow-wrap: break-word; }
td small, th small { display: block; font-weight: 400; }
td:last-child { white-space: nowrap; overflow-wrap: normal; }
td:last-child, thead th:last-child { text-align: right; padding-right: 0; }
td.name { padding-left: .8rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr));
  gap: 1.4rem 2rem; margin-top: 1.6rem; }
figure { margin: 0; } figcaption { font-size: .9rem; font-weight: 600; margin-bottom: .3rem; }
figure p { color: var(--soft); font-size: .85rem; }
.chart { display: block; width: 100%; max-width: 34rem; height: auto; font: 11px system-ui, sans-serif; }
.chart text { fill: var(--text); }
.chart .grid, .chart .axis { stroke: var(--rule); fill: none; } .chart .axis { stroke: var(--soft); }
.chart .line { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
.chart .dots { fill: none; stroke-width: 4; stroke-linecap: round; stroke-opacity: .75; }
.chart .crosses { fill: none; stroke: var(--no); stroke-width: 1.3; }
.chart .median { fill: none; stroke: var(--text); stroke-width: 2.2; }
.chart .whisker { fill: none; stroke-width: 1.2; stroke-opacity: .7; }
.chart .limit, .chart .front { fill: none; stroke: var(--text); stroke-width: 1.2; stroke-dasharray: 4 3; }
.chart .front { stroke: var(--soft); }
.chart .band { fill-opacity: .2; }
@media print, (min-width: 40rem) { td + td small { display: inline; margin-left: .6rem; } }
@media (max-width: 30rem) {
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  body { padding: .8rem; } td.name { padding-left: .5rem; } th, td { padding-right: .4rem; }
}
@media print {
  @page { size: A4; margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  figure, tr, .verdict, dl { break-inside: avoid; } h2, h3, thead { break-after: avoid; }
  .plots { grid-template-columns: 1fr 1fr; } .verdict, .chart { print-color-adjust: exact; }
}
"""


def style() -> str:
    """Return the page's style sheet. On paper it is always light."""
    colours = "".join(
        f".chart .s{index} {{ stroke: var(--c{index}); }} .chart .f{index} {{ fill: var(--c{index}); }}\n"
        for index in range(7)
    )
    return (
        f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}\n"
        f"{colours}{_RULES}"
    )


def _variables(palette: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())
