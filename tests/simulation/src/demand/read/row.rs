//! One line of a trace: fields that are checked when they are looked at.

use std::fmt;
use std::path::Path;

use csv::{ReaderBuilder, StringRecord, Trim};

use crate::demand::problem::{LineFault, TraceProblem, ValueFault};

/// A line that is not blank.
#[derive(Debug)]
pub(super) struct Row<'a> {
    path: &'a Path,
    /// Counted from 1.
    pub(super) line: u64,
    fields: StringRecord,
}

/// The lines of a text, without spaces around fields. No format here quotes anything.
///
/// # Errors
/// When the text cannot be read, which text in memory can.
pub(super) fn rows<'a>(
    path: &'a Path,
    text: &'a str,
    separator: u8,
) -> impl Iterator<Item = Result<Row<'a>, TraceProblem>> {
    let reader = ReaderBuilder::new()
        .delimiter(separator)
        .has_headers(false)
        .flexible(true)
        .quoting(false)
        .trim(Trim::All)
        .from_reader(text.as_bytes());
    let row = move |fields: csv::Result<StringRecord>| match fields {
        Ok(fields) => Ok(Row { path, line: line(text, &fields), fields }),
        Err(err) => Err(TraceProblem::Read { path: path.to_owned(), source: err.into() }),
    };
    let blank = |row: &Result<Row<'_>, _>| {
        row.as_ref().is_ok_and(|row| row.fields.len() == 1 && row.fields[0].is_empty())
    };
    reader.into_records().map(row).filter(move |row| !blank(row))
}

/// Where a record begins: the reader's position is before the empty lines that it skips.
fn line(text: &str, fields: &StringRecord) -> u64 {
    let Some(position) = fields.position() else { return 0 };
    let begin = usize::try_from(position.byte()).unwrap_or(usize::MAX);
    let rest = text.as_bytes().get(begin..).unwrap_or_default();
    let skipped = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
    let lines = skipped.filter(|byte| **byte == b'\n').count();
    position.line().saturating_add(u64::try_from(lines).unwrap_or(u64::MAX))
}

impl Row<'_> {
    /// A problem with this line.
    pub(super) fn problem(&self, fault: LineFault) -> TraceProblem {
        TraceProblem::Line { path: self.path.to_owned(), line: self.line, fault }
    }

    /// How many fields it has.
    pub(super) fn len(&self) -> usize {
        self.fields.len()
    }

    /// Checks how many fields it has.
    pub(super) fn has(&self, wanted: usize) -> Result<(), TraceProblem> {
        let found = self.len();
        if found == wanted {
            return Ok(());
        }
        Err(self.problem(LineFault::FieldCount { found, wanted }))
    }

    /// Where a column is, when this is the header.
    pub(super) fn column(&self, column: &'static str) -> Result<usize, TraceProblem> {
        self.fields
            .iter()
            .position(|name| name.eq_ignore_ascii_case(column))
            .ok_or_else(|| self.problem(LineFault::MissingColumn { column }))
    }

    /// The text of a field; nothing when there is none.
    pub(super) fn text(&self, index: usize) -> &str {
        self.fields.get(index).unwrap_or_default()
    }

    /// A problem with a field.
    pub(super) fn wrong(
        &self,
        index: usize,
        field: impl fmt::Display,
        wrong: ValueFault,
    ) -> TraceProblem {
        let text = self.text(index).chars().take(40).collect();
        self.problem(LineFault::Value { field: field.to_string(), text, wrong })
    }

    /// A number from 0 to `most`.
    pub(super) fn amount(
        &self,
        index: usize,
        field: impl fmt::Display,
        most: f64,
    ) -> Result<f64, TraceProblem> {
        let wrong = match self.text(index).parse::<f64>() {
            Err(_) => ValueFault::NotANumber,
            Ok(value) if !value.is_finite() => ValueFault::NotFinite,
            Ok(value) if value < 0.0 => ValueFault::Negative,
            Ok(value) if value > most => ValueFault::Absurd,
            Ok(value) => return Ok(value),
        };
        Err(self.wrong(index, field, wrong))
    }
}
