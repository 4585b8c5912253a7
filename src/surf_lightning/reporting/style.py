"""The looks of the page. It asks for nothing from elsewhere, and its policy forbids it to."""

from __future__ import annotations

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light; --ink: #1d1d1f; --quiet: #6b6b70; --line: #d9d9de; --faint: #f6f6f8; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 68rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; font-weight: 650; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 3rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 2rem 0 .6rem; }
p { margin: .4rem 0 .9rem; max-width: 52rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
code, pre { font: .82rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.quiet, footer { color: var(--quiet); font-size: .9rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; }
th { text-align: left; font-weight: 600; white-space: nowrap; }
th, td { padding: .36rem .9rem .36rem 0; vertical-align: baseline; }
.values { border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink); min-width: 34rem; }
.values thead th { border-bottom: 1px solid var(--ink); }
.values th + th, .values td { text-align: right; padding-left: 1.1rem; padding-right: 0;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.values tbody th { font-weight: 400; }
.values tr.published th, .values tr.published td { color: var(--quiet); font-size: .85rem; padding-top: 0; }
.values tr.published th { padding-left: 1.1rem; }
.values tr.group th { font-weight: 600; padding-top: .9rem; }
.values tr.group ~ tr:not(.group) th { padding-left: 1.1rem; }
.values tr.group ~ tr.published th { padding-left: 2.2rem; }
.values tr.first-supervised th, .values tr.first-supervised td { border-top: 1px solid var(--line); }
.values tr.supervised th { font-style: italic; }
.values td b { font-weight: 700; } .values td u { text-underline-offset: 3px; }
.values td.cost { color: var(--quiet); }
.facts td, .facts th { border-bottom: 1px solid var(--line); font-size: .85rem; }
.facts td:nth-child(-n+2) { white-space: nowrap; }
ul { padding-left: 1.1rem; margin: .6rem 0; max-width: 52rem; } li { margin: .2rem 0; }
ul.notes { font-size: .9rem; }
ul.missing li { color: #8a4b00; }
figure { margin: .8rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figure.curves img { width: 100%; min-width: 44rem; }
@media (max-width: 44rem) { figure.examples img { max-width: none; width: 48rem; } body { padding: 1.5rem 1rem 3rem; } }
figcaption { color: var(--quiet); font-size: .85rem; margin-top: .3rem; }
.sounds th { font-weight: 400; font-size: .88rem; padding-right: 1.2rem; vertical-align: middle; }
.sounds td { padding: .3rem .8rem .3rem 0; }
.sounds img { width: 15rem; height: 4.6rem; display: block; border-radius: 3px 3px 0 0; }
.sounds audio { width: 15rem; height: 2rem; display: block; }
details { margin: .4rem 0; } summary { cursor: pointer; font-size: .9rem; }
pre { background: var(--faint); padding: .9rem 1rem; overflow-x: auto; border-radius: 4px; margin: .5rem 0 1rem; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media print { body { max-width: none; padding: 0; } details { display: none; } }
"""
