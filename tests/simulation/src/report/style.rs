//! How the report looks: readable in light and in dark, on paper and on a small screen, and with any eyes: the colours are of
//! the set by Okabe and Ito, and lines that meet in a chart differ in their dashes, too.

/// The page's style sheet.
pub(super) const STYLE: &str = "
:root { color-scheme: light dark; --page: #ffffff; --text: #1c2733; --soft: #5b6875; --line: #dde3e9;
  --size: #0072b2; --demand: #c04f00; --held: #00805c; --cpu: #c04f00; --memory: #0072b2; --kill: #b0005f; }
@media (prefers-color-scheme: dark) { :root { --page: #12181f; --text: #e3e8ed; --soft: #9aa7b4; --line: #2c3742;
  --size: #56b4e9; --demand: #f0a020; --held: #2fc79a; --cpu: #f0a020; --memory: #56b4e9; --kill: #ff8ac4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 8px; } h2 { font-size: 19px; margin: 34px 0 10px; }
h3 { font-size: 16px; margin: 26px 0 4px; }
.note { color: var(--soft); font-size: 13px; margin: 4px 0 10px; }
.wide { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: 14px; min-width: 60%; }
th, td { text-align: left; vertical-align: top; padding: 4px 24px 4px 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.value, th.value { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; margin: 16px 0; font: 12px system-ui, sans-serif; break-inside: avoid; }
svg text { fill: var(--text); } svg .title { font-weight: 600; font-size: 14px; }
svg .axis { fill: var(--soft); font-weight: 400; font-size: 12px; }
svg .grid { stroke: var(--line); } svg .tick { stroke: var(--soft); }
svg .line { fill: none; stroke-width: 1.7; stroke-linejoin: round; } svg .area { stroke: none; opacity: .14; }
svg .line.size { stroke: var(--size); } svg .area.size { fill: var(--size); }
svg .line.demand { stroke: var(--demand); stroke-dasharray: 6 2; }
svg .line.held { stroke: var(--held); stroke-width: 4; opacity: .45; }
svg .line.cpu { stroke: var(--cpu); stroke-dasharray: 6 2; } svg .line.memory { stroke: var(--memory); }
svg .bar.cpu { fill: var(--cpu); } svg .bar.memory { fill: var(--memory); }
svg .kill { fill: var(--kill); stroke: var(--page); stroke-width: .5; }
";
