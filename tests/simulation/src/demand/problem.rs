//! Why a trace is not read: one problem, with its place.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The first thing that is wrong with a trace; nothing of it is used.
#[derive(Debug, thiserror::Error)]
pub enum TraceProblem {
    /// The file or folder cannot be read.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file or folder as a whole is wrong.
    #[error("{}: {fault}", .path.display())]
    Whole {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        fault: TraceFault,
    },
    /// A line is wrong.
    #[error("{}:{line}: {fault}", .path.display())]
    Line {
        /// In which file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        fault: LineFault,
    },
}

/// What can be wrong with a file or folder of traces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceFault {
    /// A folder without data.
    #[error("no trace in this folder")]
    NoTrace,
    /// A file without a line.
    #[error("the file is empty")]
    Empty,
    /// More than any known trace; see `read_traces` for the limit.
    #[error("the file has more than {most} bytes")]
    TooLarge {
        /// The limit in bytes.
        most: u64,
    },
    /// Not UTF-8.
    #[error("the file is not text")]
    NotText,
    /// No known format begins like this.
    #[error("not a known format: the first line begins with {begins:?}")]
    UnknownFormat {
        /// The beginning of the first line.
        begins: String,
    },
    /// The resolution follows from the first two rows.
    #[error("fewer than two rows: the resolution is not known")]
    TooShort,
    /// The percentile that a count is scaled by is 0.
    #[error("the field `value` counts something that is 0 nearly always: it has no scale")]
    NoScale,
}

/// What can be wrong with a line of a trace. Times are told as in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// A column that the format has is not in the header.
    #[error("the header has no column `{column}`")]
    MissingColumn {
        /// Its name.
        column: &'static str,
    },
    /// Too many or too few fields.
    #[error("{found} fields, not {wanted}")]
    FieldCount {
        /// How many there are.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// A field that is no amount.
    #[error("field `{field}`: {text:?} {wrong}")]
    Value {
        /// The name of the column, or the number of the field counted from 1.
        field: String,
        /// What stands there.
        text: String,
        /// What is wrong about it.
        wrong: ValueFault,
    },
    /// A time that is not after the one before.
    #[error("field `{field}`: {time} is not after {before}, the time of the row before")]
    NotAfter {
        /// The name of the column.
        field: &'static str,
        /// The time in this line.
        time: String,
        /// The time in the line before.
        before: String,
    },
    /// More samples are missing than may be.
    #[error(
        "field `{field}`: nothing between {from} and {to}, where one sample every {resolution:?} should be and at most {most} in a \
         row may be missing"
    )]
    Gap {
        /// The name of the column.
        field: &'static str,
        /// The last time before the gap.
        from: String,
        /// The first time after it.
        to: String,
        /// The time between the first two rows.
        resolution: Duration,
        /// How many samples may be missing.
        most: u64,
    },
    /// A time that is between those where samples are expected.
    #[error("field `{field}`: from {from} to {to} is not a multiple of {resolution:?}")]
    OffTheGrid {
        /// The name of the column.
        field: &'static str,
        /// The time in the line before.
        from: String,
        /// The time in this line.
        to: String,
        /// The time between the first two rows.
        resolution: Duration,
    },
    /// The first two rows are too near or too far from each other.
    #[error("field `{field}`: a resolution of {resolution:?} is not between a second and a day")]
    Resolution {
        /// The name of the column.
        field: &'static str,
        /// The time between the first two rows.
        resolution: Duration,
    },
}

/// What can be wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueFault {
    /// Text, or nothing.
    #[error("is not a number")]
    NotANumber,
    /// `NaN` or `inf`.
    #[error("is not finite")]
    NotFinite,
    /// Below 0.
    #[error("is negative")]
    Negative,
    /// More than any machine has.
    #[error("is absurdly large")]
    Absurd,
    /// Not in the format's way of writing times.
    #[error("is not a time")]
    NotATime,
}
