//! Old and new decisions side by side, as aligned text.

use guest_units::Size;

use super::record::{Inputs, Record};
use super::{Again, Row};

/// Longest text that is taken over from a record.
const MAX_TEXT: usize = 200;

/// A title, and a line for each row.
pub(super) fn lines(rows: &[Row]) -> Vec<String> {
    let mut titles =
        ["TIME", "INPUTS", "FROM", "TO", "RULE", "OUTCOME"].map(str::to_owned).to_vec();
    let policies = rows.first().map(|row| row.again.as_slice()).unwrap_or_default();
    titles.extend(policies.iter().map(|(policy, _)| policy.text().to_uppercase()));
    let mut cells = vec![titles];
    cells.extend(rows.iter().map(|row| {
        let Record { at, from, to, rule, outcome, attempts, inputs } = &row.record;
        let tries =
            if *attempts > 1 { format!(" (tried {attempts} times)") } else { String::new() };
        let mut line = vec![at.to_string(), short(inputs, *from), size(*from), size(*to)];
        line.extend([clean(rule), clean(outcome) + &tries]);
        line.extend(row.again.iter().map(|(_, again)| decided(again.as_ref(), *from)));
        line
    }));
    align(&cells)
}

/// Where a policy leads: `250m/1Gi, same`, or what is done first and why.
fn decided(again: Option<&Again>, from: Size) -> String {
    let Some(Again { desired, decision, same }) = again else { return "no metrics".to_owned() };
    match decision {
        _ if *same => format!("{}, same", size(*desired)),
        None if *desired == from => format!("{}, stays", size(from)),
        None => format!("{}, cannot act", size(*desired)),
        Some(step) if step.to == from => format!("{}, stays, {}", size(*desired), step.rule),
        Some(step) if step.to == *desired => format!("{}, {}", size(*desired), step.rule),
        Some(step) => format!("{}, first {}, {}", size(*desired), size(step.to), step.rule),
    }
}

/// What was known, without what is as large as the size before.
fn short(inputs: &Inputs, from: Size) -> String {
    let mut words = Vec::new();
    let mut say = |name: &str, it: Option<Size>| {
        words.extend(it.map(|it| format!("{name} {}", size(it))));
    };
    say("demand", inputs.demand);
    say("plugged", Some(inputs.plugged).filter(|plugged| *plugged != from));
    say("permit", inputs.permit.filter(|permit| *permit != from));
    say("veto", inputs.veto);
    if let (Some(cpu), Some(memory)) = (inputs.cpu_peak, inputs.memory_peak) {
        say("peak", Some(Size { cpu, memory }));
    }
    if let Some(system) = inputs.reference.as_ref().and_then(|reference| reference.system) {
        let [short, long] =
            [system.load1_milli, system.load5_milli].map(|milli| f64::from(milli) / 1000.0);
        words.push(format!("load {short:.2}/{long:.2} usage {}", system.memory_usage.short()));
    }
    if !inputs.guest_live {
        words.push("guest silent".to_owned());
    }
    words.join(" ")
}

fn size(size: Size) -> String {
    format!("{}/{}", size.cpu, size.memory.short())
}

/// No control characters, and not endless.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

/// Lines of equally wide columns; the last column is not padded.
fn align(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell: &String| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{read, replay};
    use super::*;
    use crate::policy::PolicyName;

    #[test]
    fn old_and_new_stand_side_by_side() {
        let text = r#"
            {"at":"2025-09-23T10:11:12.345Z","generation":7,"from":{"vCPUs":"250m","mem":"1Gi"},
             "to":{"vCPUs":"1250m","mem":"2432Mi"},"rule":"cpu grow, memory grow",
             "inputs":{"demand":{"vCPUs":"900m","mem":"2Gi"},"cpuPeak":"1250m","memoryPeak":"2432Mi",
                       "min":{"vCPUs":"250m","mem":"1Gi"},"max":{"vCPUs":4,"mem":"16Gi"},
                       "plugged":{"vCPUs":"250m","mem":"1Gi"},"permit":{"vCPUs":"250m","mem":"1Gi"},
                       "veto":null,"guestLive":true},
             "alternatives":[],"outcome":"denied: no\u001b room","attempts":3}
            {"at":"2025-09-23T10:12:12.345Z","generation":9,"from":{"vCPUs":1,"mem":"1Gi"},
             "to":{"vCPUs":"500m","mem":"1Gi"},"rule":"another one's",
             "inputs":{"demand":{"vCPUs":"100m","mem":"512Mi"},"cpuPeak":"250m","memoryPeak":"640Mi",
                       "min":{"vCPUs":"250m","mem":"1Gi"},"max":{"vCPUs":4,"mem":"16Gi"},
                       "plugged":{"vCPUs":1,"mem":"2Gi"},"permit":null,"guestLive":false},
             "outcome":"done","attempts":1}"#;
        let rows = replay(read(text).unwrap(), &PolicyName::ALL, None);
        assert_eq!(
            lines(&rows),
            [
                "TIME                      INPUTS                                                        FROM      TO            RULE                   OUTCOME                           HEADROOM                                 REFERENCE",
                "2025-09-23T10:11:12.345Z  demand 900m/2Gi peak 1250m/2432Mi                             250m/1Gi  1250m/2432Mi  cpu grow, memory grow  denied: no  room (tried 3 times)  1250m/2432Mi, same                       no metrics",
                "2025-09-23T10:12:12.345Z  demand 100m/512Mi plugged 1/2Gi peak 250m/640Mi guest silent  1/1Gi     500m/1Gi      another one's          done                              1/1Gi, stays, cpu silent, memory silent  no metrics",
            ]
        );
    }
}
