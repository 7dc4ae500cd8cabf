//! Columns of text, and sizes that people can read.

use guest_units::Size;

/// Longest text taken over from elsewhere.
const MAX_TEXT: usize = 500;

/// Lines of equally wide columns; the last column is not padded.
pub(crate) fn align(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

/// `250m/1Gi`, or a dash.
pub(crate) fn size(size: Option<Size>) -> String {
    size.map_or_else(|| "-".to_owned(), |size| format!("{}/{}", size.cpu, size.memory.short()))
}

/// Text of another program for a terminal: no control characters, not endless.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use guest_units::{Bytes, MilliCpu};

    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect();
        let lines = align(&[row(&["A", "LONG", "C"]), row(&["äöü", "b", ""]), row(&["x"])]);
        assert_eq!(lines, ["A    LONG  C", "äöü  b", "x"]);
    }

    #[test]
    fn sizes_are_short() {
        let it = Size { cpu: MilliCpu(1500), memory: Bytes(123_456_789) };
        assert_eq!(size(Some(it)), "1500m/117.7Mi");
        assert_eq!(size(None), "-");
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(clean("a\u{1b}[31mb\nc"), "a [31mb c");
        assert_eq!(clean(&"x".repeat(9999)).len(), MAX_TEXT);
    }
}
