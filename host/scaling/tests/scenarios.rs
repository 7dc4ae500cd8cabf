//! Scenario files: a line of time and event, the expected actions below it. `UPDATE_EXPECT=1` rewrites them.
//!
//! ```text
//! 5.0 demand 1800/2000        CPU in millicores / memory in MiB; repeated each second from then on
//!   > 5.000 ask-permit want 2250/2304 least 250/1024 (grow)
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failure to unwrap is a failed test; scenarios are files"
)]

mod world;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use guest_units::{Bytes, Moment, Size};
use host_scaling::{Action, Event};
use world::{World, limits, size};

#[test]
fn scenarios() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let found = play(&text);
        if update {
            std::fs::write(&path, &found).unwrap();
        }
        assert!(update || found == text, "{} differs; found:\n{found}", path.display());
        files += 1;
    }
    assert!(files > 0);
}

/// The file's text with the actions that really follow.
fn play(text: &str) -> String {
    let mut out = String::new();
    let mut world = World::new(limits(size(250, 1024), size(4000, 8192), 256));
    let mut demand = None;
    let mut shown = 0;
    for line in text.lines() {
        if line.starts_with("  >") {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with('#') || words.is_empty() {
            writeln!(out, "{line}").unwrap();
            continue;
        }
        let at = Duration::from_secs_f64(words[0].parse().unwrap());
        world.run(at - world.now.0, demand);
        show(&mut out, &world, &mut shown);
        writeln!(out, "{line}").unwrap();
        event(&mut world, &mut demand, &words[1..]);
        show(&mut out, &world, &mut shown);
    }
    for record in world.scaler.decisions() {
        writeln!(
            out,
            "  > decision {} -> {}: {}: {}",
            text_of(record.from),
            text_of(record.to),
            record.rule,
            record.outcome,
        )
        .unwrap();
    }
    out
}

fn event(world: &mut World, demand: &mut Option<Size>, words: &[&str]) {
    match words {
        ["demand", "none"] => *demand = None,
        ["demand", of] => {
            *demand = Some(parse(of));
            world.sample(parse(of));
        }
        ["asks", want] => world.event(Event::Asked(parse(want))),
        ["cap", "none"] => world.behaviour.cap = None,
        ["cap", cap] => world.behaviour.cap = Some(parse(cap)),
        ["veto", "none"] => world.behaviour.veto = None,
        ["veto", least] => world.behaviour.veto = Some(parse(least)),
        ["scheduler", "gone"] => world.behaviour.permit_fails = true,
        ["scheduler", "back"] => world.behaviour.permit_fails = false,
        ["guest", "gone"] => world.disconnect(),
        ["guest", "back"] => world.connect(),
        ["unplug-stops", mib] => {
            world.behaviour.unplug_stops = Some(Bytes(mib.parse::<u64>().unwrap() << 20));
        }
        ["max", max] => world.set_limits(limits(size(250, 1024), parse(max), 256)),
        ["end"] => {}
        other => panic!("unknown event {other:?}"),
    }
    let now = world.now;
    world.until(Moment(now.0));
}

fn show(out: &mut String, world: &World, shown: &mut usize) {
    for (at, action, why) in &world.log[*shown..] {
        let at = at.0.as_secs_f64();
        let what = match action {
            Action::AskPermit { want, least, .. } => {
                format!("ask-permit want {} least {}", text_of(*want), text_of(*least))
            }
            Action::PatchVm { from, size, approval, .. } => {
                let with = if approval.is_some() { " with approval" } else { "" };
                format!("patch {} -> {}{with}", text_of(*from), text_of(*size))
            }
            Action::AskGuest { from, to, .. } => {
                format!("ask-guest {} -> {}", text_of(*from), text_of(*to))
            }
            Action::TellGuest { plugged, .. } => format!("tell-guest {}", text_of(*plugged)),
        };
        writeln!(out, "  > {at:.3} {what} ({})", why.label()).unwrap();
    }
    *shown = world.log.len();
}

fn parse(text: &str) -> Size {
    let (cpu, memory) = text.split_once('/').unwrap();
    size(cpu.parse().unwrap(), memory.parse().unwrap())
}

fn text_of(size: Size) -> String {
    format!("{}/{}", size.cpu.0, size.memory.0 >> 20)
}
