//! Charts as SVG, coloured by the page's style: lines over time with round ticks, units and a legend, and bars.

use std::fmt::Write as _;

pub(super) const WIDTH: f64 = 960.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 36.0;
/// Roughly, of the page's small font.
const LETTER: f64 = 7.0;

/// How a line is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// From point to point.
    Line,
    /// A value holds until the next one.
    Steps,
    /// The same, filled down to the axis.
    Area,
}

/// A line of a chart.
#[derive(Debug, Clone)]
pub(super) struct Series {
    /// The style's name for it.
    pub(super) class: &'static str,
    pub(super) label: &'static str,
    pub(super) shape: Shape,
    /// Seconds since the start of the run, and the value.
    pub(super) points: Vec<(f64, f64)>,
}

/// What happened at a moment: marked on the axis, told when pointed at.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    /// Seconds since the start of the run.
    pub(super) at: f64,
    /// How often: the mark with the most is the tallest.
    pub(super) count: u64,
    pub(super) text: String,
}

/// A chart over time.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) unit: &'static str,
    pub(super) height: f64,
    /// From and to, in seconds since the start of the run.
    pub(super) time: (f64, f64),
    pub(super) series: Vec<Series>,
    pub(super) marks: Vec<Mark>,
}

/// Text for HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Without digits that say nothing.
pub(super) fn number(value: f64) -> String {
    let digits = if value.abs() < 0.1 { 4 } else { 2 };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Round values from zero to the first one not below `most`: about `count` steps.
fn ticks(most: f64, count: f64) -> Vec<f64> {
    let most = if most > 0.0 { most } else { 1.0 };
    let rough = most / count;
    let power = 10_f64.powf(rough.log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0].map(|factor| factor * power);
    let step = factors.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(10.0 * power);
    let mut all = vec![0.0];
    while all.last().is_none_or(|last| *last < most * 0.999) {
        all.push(step * all.len() as f64);
    }
    all
}

/// A unit of the time axis: its name, its seconds, and the steps that are round in it.
struct Clock {
    name: &'static str,
    seconds: f64,
    steps: &'static [f64],
}

const CLOCKS: [Clock; 4] = [
    Clock { name: "seconds", seconds: 1.0, steps: &[1.0, 2.0, 5.0, 10.0, 15.0, 30.0] },
    Clock { name: "minutes", seconds: 60.0, steps: &[1.0, 2.0, 5.0, 10.0, 15.0, 30.0] },
    Clock { name: "hours", seconds: 3600.0, steps: &[0.25, 0.5, 1.0, 2.0, 3.0, 6.0, 12.0] },
    Clock { name: "days", seconds: 86_400.0, steps: &[0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0] },
];

/// Moments to be marked on a time axis, with their text, and the unit.
fn clock((from, to): (f64, f64)) -> (Vec<(f64, String)>, &'static str) {
    let span = to - from;
    // Each unit begins where it has a few whole ones to show.
    let clock = CLOCKS.iter().rev().find(|clock| span >= 2.5 * clock.seconds).unwrap_or(&CLOCKS[0]);
    let wanted = span / clock.seconds / 13.0;
    let step = clock.steps.iter().copied().find(|step| *step >= wanted).unwrap_or(wanted.ceil());
    let mut all = Vec::new();
    let mut at = (from / clock.seconds / step).ceil() * step;
    while at * clock.seconds <= to + 1e-6 {
        all.push((at * clock.seconds, number(at)));
        at += step;
    }
    (all, clock.name)
}

/// From values to places on the page; values outside are put onto the edge.
#[derive(Debug, Clone, Copy)]
struct Scale {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Scale {
    fn place(&self, value: f64) -> f64 {
        let share = (value.clamp(self.low, self.high) - self.low) / (self.high - self.low);
        self.start + share * (self.end - self.start)
    }
}

impl Chart {
    /// Draws it.
    pub(super) fn draw(&self) -> String {
        let (from, to) = (self.time.0, self.time.1.max(self.time.0 + 1e-3));
        let x = Scale { low: from, high: to, start: LEFT, end: WIDTH - RIGHT };
        let points = self.series.iter().flat_map(|series| &series.points);
        let most = points.map(|point| point.1).fold(0.0, f64::max);
        let values = ticks(most * 1.02, 5.0);
        let high = values.last().copied().unwrap_or(1.0);
        let y = Scale { low: 0.0, high, start: self.height - BOTTOM, end: TOP };
        let mut out = opening(self.height, &self.title);
        title(&mut out, &self.title, self.unit);
        for value in &values {
            let place = y.place(*value);
            let _infallible = writeln!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{place:.1}\" y2=\"{place:.1}\"/>\
                 <text class=\"axis\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                place + 4.0,
                number(*value)
            );
        }
        for series in &self.series {
            line(&mut out, series, x, y);
        }
        self.time_axis(&mut out, x);
        self.marks(&mut out, x);
        self.legend(&mut out);
        out + "</svg>\n"
    }

    fn time_axis(&self, out: &mut String, x: Scale) {
        let floor = self.height - BOTTOM;
        let (moments, unit) = clock((x.low, x.high));
        for (at, text) in moments {
            let place = x.place(at);
            let _infallible = writeln!(
                out,
                "<line class=\"tick\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{floor:.1}\" y2=\"{:.1}\"/>\
                 <text class=\"axis\" text-anchor=\"middle\" x=\"{place:.1}\" y=\"{:.1}\">{text}</text>",
                floor + 4.0,
                floor + 17.0
            );
        }
        let right = WIDTH - RIGHT;
        let _infallible = writeln!(
            out,
            "<line class=\"tick\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{floor:.1}\" y2=\"{floor:.1}\"/>\
             <text class=\"axis\" text-anchor=\"end\" x=\"{right:.1}\" y=\"{:.1}\">{unit} since the start</text>",
            self.height - 4.0
        );
    }

    fn marks(&self, out: &mut String, x: Scale) {
        let floor = self.height - BOTTOM;
        let most = self.marks.iter().map(|mark| mark.count).max().unwrap_or(1).max(1);
        for mark in &self.marks {
            let height = 6.0 + 20.0 * (mark.count as f64 / most as f64);
            let _infallible = writeln!(
                out,
                "<path class=\"kill\" d=\"{}\"><title>{}</title></path>",
                triangle(x.place(mark.at), floor, height),
                escape(&mark.text)
            );
        }
    }

    fn legend(&self, out: &mut String) {
        let mut right = WIDTH - RIGHT;
        if !self.marks.is_empty() {
            let left = right - 9.0 * LETTER;
            let _infallible = writeln!(
                out,
                "<path class=\"kill\" d=\"{}\"/><text class=\"axis\" x=\"{left:.1}\" y=\"16\">OOM kills</text>",
                triangle(left - 9.0, 17.0, 12.0)
            );
            right = left - 32.0;
        }
        for series in self.series.iter().rev() {
            let left = right - series.label.chars().count() as f64 * LETTER - 31.0;
            let _infallible = writeln!(
                out,
                "<line class=\"line {}\" x1=\"{left:.1}\" x2=\"{:.1}\" y1=\"12\" y2=\"12\"/>\
                 <text class=\"axis\" x=\"{:.1}\" y=\"16\">{}</text>",
                series.class,
                left + 26.0,
                left + 31.0,
                escape(series.label)
            );
            right = left - 14.0;
        }
    }
}

/// One that stands on the floor, to be seen among the lines.
fn triangle(middle: f64, floor: f64, height: f64) -> String {
    let (left, right, top) = (middle - 3.0, middle + 3.0, floor - height);
    format!("M{middle:.1} {top:.1}L{right:.1} {floor:.1}L{left:.1} {floor:.1}Z")
}

fn opening(height: f64, title: &str) -> String {
    let title = escape(title);
    format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{title}\">\n")
}

fn title(out: &mut String, title: &str, unit: &str) {
    let _infallible = writeln!(
        out,
        "<text class=\"title\" x=\"0\" y=\"16\">{} <tspan class=\"axis\">[{}]</tspan></text>",
        escape(title),
        escape(unit)
    );
}

fn line(out: &mut String, series: &Series, x: Scale, y: Scale) {
    let Some(first) = series.points.first() else { return };
    let mut path = format!("M{:.1} {:.1}", x.place(first.0), y.place(first.1));
    let mut before = first.1;
    for (at, value) in &series.points[1..] {
        if series.shape != Shape::Line {
            let _infallible = write!(path, "L{:.1} {:.1}", x.place(*at), y.place(before));
        }
        if series.shape == Shape::Line || *value != before {
            let _infallible = write!(path, "L{:.1} {:.1}", x.place(*at), y.place(*value));
        }
        before = *value;
    }
    if series.shape == Shape::Area {
        let last = series.points.last().unwrap_or(first);
        let (right, left) = (x.place(last.0), x.place(first.0));
        let _infallible = writeln!(
            out,
            "<path class=\"area {}\" d=\"{path}L{right:.1} {floor:.1}L{left:.1} {floor:.1}Z\"/>",
            series.class,
            floor = y.start
        );
    }
    let _infallible = writeln!(out, "<path class=\"line {}\" d=\"{path}\"/>", series.class);
}

/// A bar: its label, the style's name for it, and the value.
pub(super) type Bar = (String, &'static str, f64);

/// Bars of percentages from left to right, one below the other, with their values.
pub(super) fn bars(name: &str, unit: &str, bars: &[Bar]) -> String {
    const ROW: f64 = 24.0;
    const LABELS: f64 = 190.0;
    let height = TOP + ROW * bars.len() as f64 + 4.0;
    let most = bars.iter().map(|bar| bar.2).fold(0.0, f64::max);
    let high = if most > 0.0 { most } else { 1.0 };
    // Room on the right for the value.
    let x = Scale { low: 0.0, high, start: LABELS, end: WIDTH - 90.0 };
    let mut out = opening(height, name);
    title(&mut out, name, unit);
    for (row, (label, class, value)) in bars.iter().enumerate() {
        let top = TOP + ROW * row as f64;
        let (middle, end) = (top + ROW / 2.0 + 4.0, x.place(*value));
        let _infallible = writeln!(
            out,
            "<text class=\"axis\" text-anchor=\"end\" x=\"{:.1}\" y=\"{middle:.1}\">{}</text>\
             <rect class=\"bar {class}\" x=\"{LABELS}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{middle:.1}\">{} %</text>",
            LABELS - 8.0,
            escape(label),
            top + 3.0,
            end - LABELS,
            ROW - 6.0,
            end + 6.0,
            number(*value)
        );
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(ticks(1.5, 5.0), [0.0, 0.5, 1.0, 1.5]);
        assert_eq!(ticks(0.0, 5.0).last(), Some(&1.0));
        for most in [0.003, 0.3, 7.0, 95.0, 1234.0] {
            let all = ticks(most, 5.0);
            assert!(*all.last().unwrap() >= most * 0.999 && all.len() <= 8, "{all:?}");
        }
        assert_eq!(
            [0.25, 1000.0, 0.0, 0.002, 100.0].map(number),
            ["0.25", "1000", "0", "0.002", "100"]
        );
    }

    #[test]
    fn time_is_told_in_units_that_suit_its_span() {
        let told = |from: f64, to: f64| {
            let (moments, unit) = clock((from, to));
            (moments.into_iter().map(|it| it.1).collect::<Vec<_>>().join(" "), unit)
        };
        assert_eq!(told(0.0, 86_400.0), ("0 2 4 6 8 10 12 14 16 18 20 22 24".to_owned(), "hours"));
        assert_eq!(told(900.0, 1800.0), ("16 18 20 22 24 26 28 30".to_owned(), "minutes"));
        assert_eq!(told(0.0, 60.0), ("0 5 10 15 20 25 30 35 40 45 50 55 60".to_owned(), "seconds"));
        assert_eq!(told(0.0, 30.0 * 86_400.0).1, "days");
    }

    #[test]
    fn a_chart_has_its_lines_its_axes_and_no_open_text() {
        let series = |shape| Series {
            class: "used",
            label: "a<b",
            shape,
            points: vec![(0.0, 1.0), (5.0, 2.0)],
        };
        let mark = Mark { at: 1.0, count: 2, text: "2 & more".to_owned() };
        let chart = Chart {
            title: "CPU".to_owned(),
            unit: "vCPU",
            height: 200.0,
            time: (0.0, 10.0),
            series: vec![series(Shape::Area), series(Shape::Line)],
            marks: vec![mark],
        };
        let text = chart.draw();
        assert_eq!(text.matches("class=\"line used\" d=").count(), 2);
        assert_eq!(text.matches("class=\"area used\"").count(), 1);
        assert!(
            text.contains("a&lt;b") && text.contains("2 &amp; more") && text.contains("[vCPU]")
        );
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n") && !text.contains("NaN"));
        let empty = Chart { series: Vec::new(), time: (0.0, 0.0), ..chart }.draw();
        assert!(!empty.contains("NaN") && !bars("a", "%", &[]).contains("NaN"));
    }
}
