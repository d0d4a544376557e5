"""The style sheet and the script of the report page."""

CSS = """
:root { --ink: #1b1f24; --dim: #5b6470; --paper: #ffffff; --line: #d5dae0; --card: #f6f8fa;
        --bad: #b3261e; --focus: #0072b2; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --dim: #a3abb5; --paper: #14171a; --line: #363c43; --card: #1d2126;
          --bad: #ff8a80; --focus: #56b4e9; }
}
@media print {
  :root { --ink: #000; --dim: #444; --paper: #fff; --line: #bbb; --card: #fff; --bad: #b3261e;
          color-scheme: light; }
  @page { size: A4 landscape; margin: 12mm; }
  body { font-size: 12px; }
  main { max-width: none; padding: 0; }
  section.panel, table, tr, .piece { break-inside: avoid; }
  h2 { break-after: avoid; }
  section.long { break-inside: auto; break-before: page; }
  .piece { overflow: hidden; position: relative; }
  table { font-size: 10.5px; }
  .scroll { overflow: visible !important; }
  .modebar, .updatemenu-container, .sorter::after { display: none !important; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 36px 0 2px; }
p { margin: 0 0 10px; max-width: 120ch; }
.dim, caption { color: var(--dim); }
.empty { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
         padding: 14px 16px; max-width: none; }
.scroll { overflow-x: auto; margin: 8px 0 12px; }
table { border-collapse: collapse; font-size: 12px; width: 100%; }
caption { caption-side: bottom; text-align: left; padding-top: 6px; }
th, td { padding: 5px 6px; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; overflow-wrap: break-word; }
td:not(:last-child) { max-width: 26em; }
th { vertical-align: bottom; line-height: 1.3; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
td:first-child { min-width: 9em; }
.bad { color: var(--bad); }
.sorter { all: unset; cursor: pointer; font-weight: 600; }
.sorter:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px; }
.sorter::after { content: "\\a0\\2195"; color: var(--dim); font-weight: 400; }
th[aria-sort=ascending] .sorter::after { content: "\\a0\\2191"; color: var(--ink); }
th[aria-sort=descending] .sorter::after { content: "\\a0\\2193"; color: var(--ink); }
.swatch { vertical-align: middle; margin-right: 7px; }
details { margin: 6px 0; }
summary { cursor: pointer; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 10px;
      overflow-x: auto; font-size: 12.5px; line-height: 1.45; white-space: pre-wrap; }
.main-svg text:not(.updatemenu-item-text, .updatemenu-header-arrow)
  { fill: var(--ink) !important; }
.hoverlayer text { fill: #222 !important; }
.legend .bg { fill: transparent !important; }
.modebar-btn .icon path { fill: var(--dim) !important; }
"""

JS = """
for (const button of document.querySelectorAll('.sorter')) {
  button.addEventListener('click', () => {
    const th = button.parentElement, table = th.closest('table'), body = table.tBodies[0];
    const down = th.getAttribute('aria-sort') === 'ascending';
    for (const other of table.querySelectorAll('th')) other.removeAttribute('aria-sort');
    th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const value = row => row.cells[th.cellIndex].dataset.sort;
    const order = (a, b) => {
      if (a === '' || b === '') return (a === '') - (b === '');
      const difference = Number(a) - Number(b);
      const sign = down ? -1 : 1;
      return sign * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
    };
    const rows = [...body.rows].sort((a, b) => order(value(a), value(b)));
    body.append(...rows);
  });
}
const figures = [...document.querySelectorAll('.js-plotly-plot')];
const heights = figures.map(figure => figure.layout.height);
// A figure of many rows is cut between them: a piece holds as many rows as a sheet of paper.
const PAPER = 620, TITLE = 40;
const bounds = figure => {
  const layout = figure._fullLayout, keys = Object.keys(layout).filter(k => /^yaxis\\d*$/.test(k));
  const top = k => Math.round(layout._size.t + (1 - layout[k].domain[1]) * layout._size.h) - TITLE;
  const tops = [...new Set(keys.map(top))].sort((a, b) => a - b), cuts = [0];
  tops.slice(1).forEach((at, i) => {
    if ((tops[i + 2] ?? layout.height) - cuts.at(-1) > PAPER) cuts.push(at); });
  return [...cuts, layout.height];
};
const cut = figure => bounds(figure).forEach((end, i, all) => {
  if (!i) return;
  const piece = document.createElement('div'), copy = figure.firstElementChild.cloneNode(true);
  piece.className = 'js-plotly-plot piece';
  piece.style.height = `${end - all[i - 1]}px`;
  copy.style.marginTop = `${-all[i - 1]}px`;
  piece.append(copy);
  figure.before(piece);
});
addEventListener('beforeprint', () => figures.forEach((figure, i) => {
  const rows = heights[i] > 1.5 * PAPER && bounds(figure).length > 2;
  const scale = rows ? 1 : Math.min(1, 560 / heights[i]);  // smaller letters do not overlap
  Plotly.relayout(figure, {width: 980 / scale, height: heights[i]});
  figure.style.zoom = scale;
  figure.parentElement.style.height = 'auto';  // what is left free would fill pages
  if (!rows) return;
  cut(figure);
  figure.style.display = 'none';
  figure.closest('section').classList.add('long');
}));
addEventListener('afterprint', () => {
  document.querySelectorAll('.piece').forEach(piece => piece.remove());
  figures.forEach((figure, i) => {
    figure.style.display = figure.style.zoom = '';
    figure.parentElement.style.height = `${heights[i]}px`;
    Plotly.relayout(figure, {width: null, height: heights[i], autosize: true}); });
});
"""
"""Sorts tables (missing values last) and fits figures to the paper when printing."""
