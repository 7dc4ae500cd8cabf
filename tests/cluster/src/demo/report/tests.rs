//! The report is whole, for a good recording, an empty one and one with hostile text.

use super::super::checks::{self, sample};
use super::*;

fn render(recording: &Recording) -> String {
    page(recording, &checks::checks(recording), &checks::figures(recording))
}

#[test]
fn a_good_recording_makes_a_whole_page() {
    let text = render(&sample::good());
    assert!(text.contains("All checks passed.") && text.contains("target: at most 3 s, met"));
    assert_eq!(text.matches("<svg").count(), 6);
    assert_eq!(text.matches("<svg").count(), text.matches("</svg>").count());
    assert!(!text.contains("NaN") && !text.contains("inf"));
    for outside in ["http://", "https://", "<script", "src="] {
        assert!(!text.contains(outside), "{outside}");
    }
    // For a look at it in a browser.
    if let Some(path) = std::env::var_os("DEMO_REPORT") {
        std::fs::write(path, text).unwrap();
    }
}

#[test]
fn an_empty_recording_makes_a_page_that_says_so() {
    let text = render(&Recording::default());
    assert!(text.contains("Not all checks passed.") && text.contains("not seen"));
    assert!(text.contains("No growth of memory could be followed") && !text.contains("NaN"));
}

#[test]
fn text_of_others_cannot_break_the_page() {
    let mut recording = sample::good();
    recording.decisions[0].outcome = "denied: <script>alert(1)</script>".to_owned();
    let text = render(&recording);
    assert!(!text.contains("<script") && text.contains("&lt;script&gt;"));
}

#[test]
fn percentiles_of_few_and_many() {
    let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
    assert_eq!(percentile(&hundred, 0.5), Some(50.0));
    assert_eq!(percentile(&hundred, 0.99), Some(99.0));
    assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
    assert_eq!(percentile(&[], 0.5), None);
}
