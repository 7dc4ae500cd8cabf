//! Charts by hand: scales, axes with units, lines, areas, shaded stages, legends; one SVG each, coloured by the page's style.

use std::fmt::Write as _;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 30.0;
/// Roughly, of the page's small font.
const LETTER: f64 = 6.4;

/// From values to places on the page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scale {
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) log: bool,
    pub(crate) start: f64,
    pub(crate) end: f64,
}

impl Scale {
    /// The place of a value; values outside are put onto the edge.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        let share = if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.start + share * (self.end - self.start)
    }
}

/// Round values from zero to the first one not below `most`: at most about `count` steps.
pub(crate) fn ticks(most: f64, count: f64) -> Vec<f64> {
    let most = if most > 0.0 { most } else { 1.0 };
    let rough = most / count;
    let power = 10_f64.powf(rough.log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    let step = factors.map(|factor| factor * power).into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let mut all = vec![0.0];
    while all.last().is_none_or(|last| *last < most * 0.999) {
        all.push(step * all.len() as f64);
    }
    all
}

/// Powers of ten around the values.
fn powers(least: f64, most: f64) -> Vec<f64> {
    let mut value = 10_f64.powf(least.max(0.01).log10().floor());
    let mut all = vec![value];
    while value < most {
        value *= 10.0;
        all.push(value);
    }
    if all.len() == 1 {
        all.push(value * 10.0);
    }
    all
}

/// How a line is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// From point to point.
    Line,
    /// A value holds until the next one.
    Steps,
    /// The same, filled down to the axis.
    Area,
}

/// A line of a chart.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    /// The style's name for it.
    pub(crate) class: &'static str,
    pub(crate) label: &'static str,
    pub(crate) shape: Shape,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A chart over the time of the demonstration.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) height: f64,
    pub(crate) log: bool,
    pub(crate) series: Vec<Series>,
    /// Values with a dashed line across the chart.
    pub(crate) limits: Vec<(f64, &'static str)>,
    /// Moments that are marked on the axis, with what happened.
    pub(crate) marks: Vec<(f64, String)>,
}

/// The time axis that all charts share: its end, and the stages on it.
#[derive(Debug, Clone)]
pub(crate) struct Time {
    pub(crate) end: f64,
    pub(crate) stages: Vec<(f64, f64, String)>,
}

/// Text for HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Chart {
    /// Draws it.
    pub(crate) fn draw(&self, time: &Time) -> String {
        let x = Scale {
            low: 0.0,
            high: time.end.max(1.0),
            log: false,
            start: LEFT,
            end: WIDTH - RIGHT,
        };
        let (values, y) = self.values();
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{}\">\n",
            self.height,
            escape(self.title)
        );
        self.stages(&mut out, time, x);
        grid(&mut out, &values, y);
        self.time_axis(&mut out, x);
        for (value, label) in &self.limits {
            limit(&mut out, y.place(*value), label);
        }
        for series in &self.series {
            line(&mut out, series, x, y);
        }
        let floor = self.height - BOTTOM;
        for (at, what) in &self.marks {
            let _infallible = writeln!(
                out,
                "<circle class=\"mark\" cx=\"{:.1}\" cy=\"{floor:.1}\" r=\"3\"><title>{}</title></circle>",
                x.place(*at),
                escape(what)
            );
        }
        self.legend(&mut out);
        out + "</svg>\n"
    }

    fn values(&self) -> (Vec<f64>, Scale) {
        let points = || self.series.iter().flat_map(|series| series.points.iter().map(|it| it.1));
        let most = points().chain(self.limits.iter().map(|it| it.0)).fold(0.0, f64::max);
        let least = points().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
        let values = if self.log {
            powers(if least.is_finite() { least } else { 1.0 }, most)
        } else {
            // A little room above, for the names of the stages.
            ticks(most * 1.12, 5.0)
        };
        let (low, high) = (values[0], values[values.len() - 1]);
        (values, Scale { low, high, log: self.log, start: self.height - BOTTOM, end: TOP })
    }

    fn stages(&self, out: &mut String, time: &Time, x: Scale) {
        for (number, (from, to, name)) in time.stages.iter().enumerate() {
            let (left, right) = (x.place(*from), x.place(*to));
            let height = self.height - BOTTOM - TOP;
            let _infallible = writeln!(
                out,
                "<rect class=\"stage{}\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{height:.1}\"/>\
                 <text class=\"stage\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                number % 2,
                right - left,
                left + 4.0,
                TOP + 12.0,
                escape(name)
            );
        }
    }

    fn time_axis(&self, out: &mut String, x: Scale) {
        let floor = self.height - BOTTOM;
        for at in ticks(x.high, 12.0).into_iter().filter(|at| *at <= x.high) {
            let place = x.place(at);
            let _infallible = writeln!(
                out,
                "<line class=\"tick\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{floor:.1}\" y2=\"{:.1}\"/>\
                 <text class=\"axis\" text-anchor=\"middle\" x=\"{place:.1}\" y=\"{:.1}\">{at:.0}</text>",
                floor + 4.0,
                floor + 17.0
            );
        }
        let _infallible = writeln!(
            out,
            "<line class=\"tick\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{floor:.1}\" y2=\"{floor:.1}\"/>\
             <text class=\"axis\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">seconds</text>",
            WIDTH - RIGHT,
            WIDTH - RIGHT,
            self.height - 2.0
        );
    }

    fn legend(&self, out: &mut String) {
        let _infallible = writeln!(
            out,
            "<text class=\"title\" x=\"0\" y=\"16\">{} <tspan class=\"axis\">[{}]</tspan></text>",
            escape(self.title),
            escape(self.unit)
        );
        let mut right = WIDTH - RIGHT;
        for series in self.series.iter().rev() {
            let text = series.label.chars().count() as f64 * LETTER;
            let left = right - text - 26.0;
            let _infallible = writeln!(
                out,
                "<line class=\"line {}\" x1=\"{left:.1}\" x2=\"{:.1}\" y1=\"12\" y2=\"12\"/>\
                 <text class=\"axis\" x=\"{:.1}\" y=\"16\">{}</text>",
                series.class,
                left + 20.0,
                left + 25.0,
                escape(series.label)
            );
            right = left - 14.0;
        }
    }
}

fn grid(out: &mut String, values: &[f64], y: Scale) {
    for value in values {
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
}

/// A tick's value without digits that say nothing.
pub(crate) fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn limit(out: &mut String, place: f64, label: &str) {
    let right = WIDTH - RIGHT;
    let _infallible = writeln!(
        out,
        "<line class=\"limit\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{place:.1}\" y2=\"{place:.1}\"/>\
         <text class=\"axis\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        right - 4.0,
        place - 4.0,
        escape(label)
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
        let _infallible = write!(path, "L{:.1} {:.1}", x.place(*at), y.place(*value));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_maps_ends_middle_and_outside() {
        let scale = Scale { low: 0.0, high: 10.0, log: false, start: 100.0, end: 0.0 };
        assert_eq!(
            [0.0, 5.0, 10.0, 99.0, -1.0].map(|v| scale.place(v)),
            [100.0, 50.0, 0.0, 0.0, 100.0]
        );
        let log = Scale { low: 1.0, high: 100.0, log: true, start: 0.0, end: 200.0 };
        assert!((log.place(10.0) - 100.0).abs() < 1e-9);
        assert_eq!(log.place(0.0), 0.0);
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(ticks(1.5, 5.0), [0.0, 0.5, 1.0, 1.5]);
        assert_eq!(ticks(2560.0, 5.0), [0.0, 1000.0, 2000.0, 3000.0]);
        assert_eq!(ticks(0.0, 5.0).last(), Some(&1.0));
        for most in [0.3, 7.0, 95.0, 1234.0] {
            let all = ticks(most, 5.0);
            assert!(*all.last().unwrap() >= most * 0.999 && all.len() <= 8, "{all:?}");
        }
        assert_eq!(powers(3.0, 250.0), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(number(0.250), "0.25");
        assert_eq!(number(1000.0), "1000");
    }

    #[test]
    fn a_chart_has_its_lines_its_axes_and_no_open_text() {
        let series = |shape| Series {
            class: "used",
            label: "a<b",
            shape,
            points: vec![(0.0, 1.0), (5.0, 2.0)],
        };
        let chart = Chart {
            title: "CPU",
            unit: "vCPU",
            height: 200.0,
            log: false,
            series: vec![series(Shape::Area), series(Shape::Line)],
            limits: vec![(2.5, "maximum")],
            marks: vec![(1.0, "grow & go".to_owned())],
        };
        let text = chart.draw(&Time { end: 10.0, stages: vec![(0.0, 5.0, "light".to_owned())] });
        assert_eq!(text.matches("class=\"line used\" d=").count(), 2);
        assert_eq!(text.matches("class=\"area used\"").count(), 1);
        assert!(
            text.contains("a&lt;b") && text.contains("grow &amp; go") && text.contains("[vCPU]")
        );
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n") && !text.contains("NaN"));
        let empty = Chart { series: Vec::new(), limits: Vec::new(), log: true, ..chart };
        assert!(!empty.draw(&Time { end: 0.0, stages: Vec::new() }).contains("NaN"));
    }
}
