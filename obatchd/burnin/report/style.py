"""The style sheet of the report page, for screen and paper."""

from __future__ import annotations

STYLE = """
:root { --ink: #1c2126; --soft: #5b6570; --rule: #d5dadf; --pass: #16794c; --low: #8a6100; --fail: #b3261e;
    --unknown: #5b4a9e; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 24px; color: var(--ink); font: 14px/1.45 system-ui, "Segoe UI",
    Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 0 0 6px; }
h3 { font-size: 15px; margin: 14px 0 4px; }
p { margin: 4px 0 8px; }
.soft { color: var(--soft); }
.none { color: var(--soft); margin: 8px 0 0 8px; }
.badge { display: inline-block; padding: 1px 9px; border-radius: 4px; color: #fff; font-weight: 600; font-size:
    13px; white-space: nowrap; }
.PASS { background: var(--pass); }
.PASS_LOW_STRESS { background: var(--low); }
.FAIL { background: var(--fail); }
.INCONCLUSIVE { background: var(--unknown); }
table { border-collapse: collapse; width: 100%; margin: 6px 0 12px; }
th { text-align: left; font-weight: 600; }
th, td { padding: 3px 8px 3px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; }
thead th { vertical-align: bottom; }
tbody td:first-child { min-width: 9em; }
a { color: inherit; }
dl { display: grid; grid-template-columns: max-content 1fr max-content 1fr; gap: 1px 14px; margin: 6px 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: 1fr 1fr; gap: 8px 18px; margin: 8px 0; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 12px; font-weight: 600; }
figure svg { width: 100%; display: block; }
.lines { position: absolute; }
.line, .sibling, .lines path { fill: none; }
.line { stroke-width: 1.3; }
.own { stroke: #0b57a4; stroke-width: 1.6; }
.sibling { stroke: #b9c0c8; stroke-width: .8; }
.grid { stroke: #e7eaed; stroke-width: .6; fill: none; }
.phase { stroke: #8a939c; stroke-width: .8; stroke-dasharray: 1 2; fill: none; }
.tick { font-size: 8.5px; fill: #5b6570; }
.gap { fill: #d5d8dc; }
.throttled { fill: #f6b26b; opacity: .45; }
.fail { color: var(--fail); }
.warn { color: var(--low); }
.inconclusive { color: var(--unknown); }
.mark { stroke: currentColor; stroke-width: 1; stroke-dasharray: 3 2; fill: none; }
.mark-number { fill: currentColor; font-size: 9px; font-weight: 700; }
.reasons li { margin: 2px 0; }
.tag { font-weight: 600; }
.action { border-left: 4px solid var(--ink); padding: 2px 0 2px 10px; margin: 8px 0; }
.gpu { margin-top: 34px; border-top: 2px solid var(--ink); padding-top: 12px; }
code { font-size: 12px; overflow-wrap: anywhere; }
.legend { font-size: 12px; color: var(--soft); }
.named { display: inline-block; white-space: nowrap; margin-left: 12px; }
.key { vertical-align: middle; }
.key .line { stroke-width: 2.4; }
.swatch { display: inline-block; width: 14px; height: 3px; vertical-align: middle; margin: 0 4px 0 12px; }
@page { size: A4; margin: 10mm 12mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 9.8px; line-height: 1.3;
    -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  .gpu { break-before: page; margin-top: 0; border-top: 0; padding-top: 0; }
  figure, tr, li { break-inside: avoid; }
  h1 { font-size: 19px; }
  h2 { font-size: 15px; }
  h3 { font-size: 11px; margin: 5px 0 1px; }
  .plots { gap: 4px 12px; margin: 4px 0; grid-template-columns: 1fr 1fr 1fr; }
  .badge { font-size: 10.5px; }
  .legend { font-size: 9px; margin: 2px 0; }
  figcaption { font-size: 9.5px; }
  ul { margin: 2px 0; }
  .action { margin: 4px 0; }
  dl { margin: 3px 0; gap: 0 14px; }
  code { font-size: 8.5px; }
  th, td { padding: 1px 6px 1px 0; }
}
"""
