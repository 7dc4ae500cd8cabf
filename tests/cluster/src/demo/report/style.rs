//! How the report looks: readable in light and in dark, on paper and on a small screen.

/// The page's style sheet.
pub(super) const STYLE: &str = "
:root { color-scheme: light dark; --page: #ffffff; --text: #1c2733; --soft: #5b6875; --line: #d9dfe5; --band: #f3f6f9;
  --used: #d9480f; --desired: #7048e8; --permitted: #2b8a3e; --plugged: #1c7ed6; --steady: #1c7ed6; --cpu: #d9480f;
  --memory: #7048e8; --p50: #1c7ed6; --p99: #d9480f; --good: #2b8a3e; --bad: #c92a2a; --late: #a65d00; }
@media (prefers-color-scheme: dark) { :root { --page: #12181f; --text: #e3e8ed; --soft: #9aa7b4; --line: #2c3742;
  --band: #19212a; --used: #ff922b; --desired: #b197fc; --permitted: #69db7c; --plugged: #4dabf7; --steady: #4dabf7;
  --cpu: #ff922b; --memory: #b197fc; --p50: #4dabf7; --p99: #ff922b; --good: #69db7c; --bad: #ff8787; --late: #ffc078; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 8px; } h2 { font-size: 19px; margin: 34px 0 10px; }
.verdict { font-weight: 600; font-size: 17px; margin: 0 0 6px; }
.good { color: var(--good); } .bad { color: var(--bad); } .late { color: var(--late); }
.note { color: var(--soft); font-size: 13px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 10px; margin: 18px 0 6px; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; color: var(--text); display: flex;
  flex-direction: column; gap: 4px; }
.card b { font-size: 22px; } .card span { font-size: 13px; } .card small { color: var(--soft); margin-top: auto; }
.card.good b { color: var(--good); } .card.late b, .card.late small { color: var(--late); }
.wide { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; vertical-align: top; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } td { font-variant-numeric: tabular-nums; }
td b { white-space: nowrap; } code { font: 12px ui-monospace, monospace; }
svg { display: block; width: 100%; height: auto; margin: 14px 0; font: 12px system-ui, sans-serif; }
svg text { fill: var(--text); } svg .title { font-weight: 600; font-size: 14px; }
svg .axis, svg .stage { fill: var(--soft); font-weight: 400; font-size: 12px; }
svg rect.stage0 { fill: var(--band); } svg rect.stage1 { fill: none; }
svg .grid { stroke: var(--line); } svg .tick { stroke: var(--soft); }
svg .limit { stroke: var(--soft); stroke-dasharray: 2 4; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } svg .area { stroke: none; opacity: .14; }
svg .mark { fill: var(--soft); }
svg .line.used { stroke: var(--used); } svg .line.desired { stroke: var(--desired); stroke-dasharray: 2 3; }
svg .line.permitted { stroke: var(--permitted); stroke-dasharray: 7 4; }
svg .line.plugged { stroke: var(--plugged); stroke-width: 2.2; } svg .area.plugged { fill: var(--plugged); }
svg .line.steady { stroke: var(--steady); } svg .area.steady { fill: var(--steady); }
svg .line.cpu { stroke: var(--cpu); } svg .area.cpu { fill: var(--cpu); }
svg .line.memory { stroke: var(--memory); } svg .area.memory { fill: var(--memory); }
svg .line.p50 { stroke: var(--p50); } svg .line.p99 { stroke: var(--p99); }
svg .bar { stroke: none; } svg .bar.agent { fill: var(--plugged); } svg .bar.scheduler { fill: var(--permitted); }
svg .bar.controller { fill: var(--desired); } svg .bar.runner { fill: var(--used); }
";
