//! Fleets side by side as text: a row for each number, a column for each policy.

use std::collections::BTreeMap;

use serde_json::Value;

use super::FleetReport;

/// A table of reports of the same fleet under several policies, with aligned columns. The first column names each number
/// with its unit, as in the JSON; `-` stands for one that does not exist.
#[must_use]
pub fn table(policies: &[(&str, FleetReport)]) -> String {
    let columns: Vec<BTreeMap<_, _>> = policies
        .iter()
        .map(|(_, report)| {
            let mut cells = BTreeMap::new();
            flatten("", &serde_json::to_value(report).unwrap_or_default(), &mut cells);
            cells
        })
        .collect();
    let mut names: Vec<_> = columns.iter().flat_map(BTreeMap::keys).collect();
    names.sort();
    names.dedup();
    let header = policies.iter().map(|(name, _)| (*name).to_owned());
    let mut rows: Vec<Vec<String>> =
        vec![["number".to_owned()].into_iter().chain(header).collect()];
    for name in names {
        let cells = columns.iter().map(|column| column.get(name).map_or("-", |cell| cell));
        rows.push([name.1.as_str()].into_iter().chain(cells).map(str::to_owned).collect());
    }
    render(&rows)
}

/// The numbers of an object, those of its parts after its own.
fn flatten(prefix: &str, value: &Value, cells: &mut BTreeMap<(usize, String), String>) {
    let Value::Object(fields) = value else { return };
    for (field, value) in fields {
        let name = if prefix.is_empty() { field.clone() } else { format!("{prefix} {field}") };
        if value.is_object() {
            flatten(&name, value, cells);
        } else {
            cells.insert((name.matches(' ').count(), name), cell(value));
        }
    }
}

/// Four digits or so; whole numbers as they are.
fn cell(value: &Value) -> String {
    let (Value::Number(number), Some(float)) = (value, value.as_f64()) else {
        return "-".to_owned();
    };
    match float {
        _ if number.is_u64() || number.is_i64() => number.to_string(),
        0.0 => "0".to_owned(),
        ..0.001 => format!("{float:.2e}"),
        ..10.0 => format!("{float:.4}"),
        _ => format!("{float:.2}"),
    }
}

fn render(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") }
        });
        text.extend(cells);
        text.push('\n');
    }
    text
}
