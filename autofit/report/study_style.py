"""The style sheet of a study's page: light and dark by the reader's system, phone width, and paper."""

STYLE = """
:root { color-scheme: light dark;
  --ground: #ffffff; --raised: #f6f8fa; --ink: #1f2328; --muted: #59636e; --line: #d8dee4;
  --accent: #0969da; --trade: #bc4c00; --over: #cf222e; --within: #1a7f37; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #0d1117; --raised: #161b22; --ink: #e6edf3; --muted: #9da7b3; --line: #30363d;
  --accent: #58a6ff; --trade: #f0883e; --over: #ff7b72; --within: #56d364; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0 auto; max-width: 1080px; padding: 2.5rem 1.5rem 3rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: .18em; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 2px; }
.eyebrow { margin: 0; color: var(--muted); font-size: .875rem; overflow-wrap: anywhere; }
h1 { margin: .35rem 0 .4rem; font-size: clamp(1.6rem, 4.2vw, 2.4rem); line-height: 1.15; font-weight: 650;
  letter-spacing: -.018em; text-wrap: balance; }
h2 { margin: 0 0 .6rem; font-size: 1.2rem; line-height: 1.3; font-weight: 620; letter-spacing: -.008em; }
.configuration { margin: 0 0 1.4rem; max-width: 72ch; color: var(--muted); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1px; margin: 0 0 1.4rem;
  background: var(--line); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.tile { background: var(--ground); padding: .85rem 1rem .9rem; }
.tile dt { color: var(--muted); font-size: .8125rem; line-height: 1.35; }
.tile dd { margin: .15rem 0 0; font-size: 1.5rem; font-weight: 620; letter-spacing: -.015em; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.unit { font-size: .8125rem; font-weight: 400; letter-spacing: 0; color: var(--muted); }
.why { margin: 0; padding: 0 0 0 1.1rem; max-width: 78ch; }
.why li { margin: .2rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .35rem 1.2rem; margin: 2rem 0 0; padding: .75rem 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); font-size: .875rem; }
nav a { color: var(--muted); text-decoration: none; }
nav a:hover { color: var(--ink); text-decoration: underline; }
section { margin: 2.6rem 0 0; scroll-margin-top: 1rem; }
section > p, section > ol { max-width: 78ch; }
section > p { margin: 0 0 .8rem; color: var(--muted); }
figure { margin: 0; }
figcaption { max-width: 78ch; margin-top: .4rem; color: var(--muted); font-size: .875rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
svg a { cursor: pointer; }
svg a:hover path, svg a:hover use, svg a:focus-visible path, svg a:focus-visible use { stroke: var(--ink) !important;
  stroke-width: 2 !important; }
.narrow { display: none; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; line-height: 1.4; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: .5rem 1rem .5rem 0; text-align: left; vertical-align: baseline; font-weight: 400;
  border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: .25rem; }
thead th { color: var(--muted); font-size: .8125rem; white-space: nowrap; }
tbody th { font-variant-numeric: tabular-nums; }
.figure { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
#compromise-table thead th:not(:first-child), #trial-table thead th:nth-child(n+3):not(:nth-child(5)) { text-align: right; }
#compromise-table th:first-child { min-width: 15rem; }
.group th { padding-top: 1.1rem; font-weight: 620; }
.along, .reason { color: var(--muted); }
.reason { display: block; font-size: .8125rem; }
.told { min-width: 19rem; }
.over { color: var(--over); font-weight: 400; }
.evidence { white-space: nowrap; }
.evidence.predicted { color: var(--muted); font-style: italic; }
.mark { display: inline-block; padding: 0 .4rem; border: 1px solid currentColor; border-radius: 1rem; font-size: .6875rem;
  line-height: 1.35; vertical-align: .08em; }
.mark.winner { color: var(--within); }
.mark.front { color: var(--accent); }
tr:target > * { background: var(--raised); box-shadow: inset 0 0 0 1px var(--line); }
tr:target > th:first-child { box-shadow: inset 3px 0 0 var(--accent); }
tr[id] { scroll-margin-top: 4rem; }
tr[id] > th:first-child { padding-left: .6rem; }
pre { margin: .35rem 0 1rem; padding: .7rem .9rem; overflow-x: auto; background: var(--raised); border: 1px solid var(--line);
  border-radius: 6px; font-size: .875rem; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; font-size: .93em; }
ol { padding-left: 1.2rem; margin: 0; }
.facts { margin: 0; font-size: .875rem; }
.facts div { display: grid; grid-template-columns: 11rem 1fr; gap: 0 1rem; padding: .4rem 0;
  border-bottom: 1px solid var(--line); }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.none { padding: .8rem 1rem; background: var(--raised); border-radius: 6px; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--muted); font-size: .8125rem; }
footer p { margin: 0; max-width: 78ch; }
@media (max-width: 640px) {
  body { padding: 1.25rem 1rem 2rem; font-size: 15px; }
  .wide { display: none; } .narrow { display: block; }
  .tiles { grid-template-columns: 1fr 1fr; } .tile { padding: .7rem .8rem; } .tile dd { font-size: 1.25rem; }
  .facts div { grid-template-columns: 1fr; } .told { min-width: 13rem; } #compromise-table th:first-child { min-width: 11rem; }
  th, td { padding-right: .8rem; }
  section { margin-top: 2.2rem; }
}
@media print {
  :root { --ground: #fff; --raised: #fff; --ink: #000; --muted: #444; --line: #bbb; --accent: #0550ae; --trade: #953800;
    --over: #a40e26; --within: #116329; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; } .wide { display: block; } .narrow { display: none; }
  section, figure, .tiles, tr { break-inside: avoid; } #trials { break-inside: auto; }
  h2 { break-after: avoid; } #trials { break-before: page; } .reason, .mark, thead th { font-size: 1em; }
  .scroll { overflow: visible; } table { font-size: 8.5pt; } th, td { padding: .25rem .5rem .25rem 0; }
  .told { min-width: 0; } a { color: inherit; text-decoration: none; }
}
"""
