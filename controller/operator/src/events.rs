//! What people are told by Kubernetes Events on the VM object.

use controller_lifecycle::Notice;
use kube::runtime::events::{Event, EventType};

/// Notes of events are limited by the API server.
const MAX_NOTE_CHARS: usize = 900;

/// The event for a notice.
pub(crate) fn event(notice: &Notice) -> Event {
    let (type_, reason, action, note) = match notice {
        Notice::Created(pod) => {
            (EventType::Normal, "Created", "CreatePod", format!("Created pod {pod}"))
        }
        Notice::Running(pod) => {
            (EventType::Normal, "Running", "Start", format!("The VM runs in pod {pod}"))
        }
        Notice::Scaled { from, to } => (
            EventType::Normal,
            "Scaled",
            "Scale",
            format!(
                "Scaled from {} CPU, {} to {} CPU, {}",
                from.cpu, from.memory, to.cpu, to.memory
            ),
        ),
        Notice::ShrinkVetoed(why) => (
            EventType::Normal,
            "ShrinkVetoed",
            "Scale",
            format!("The guest refused to shrink: {why}"),
        ),
        Notice::Partial(why) => (
            EventType::Warning,
            "PartlyScaled",
            "Scale",
            format!("The size was only partly reached: {why}"),
        ),
        Notice::PodFailed(why) => (EventType::Warning, "PodFailed", "Observe", why.clone()),
        Notice::Restarted(count) => (
            EventType::Normal,
            "Restarted",
            "Restart",
            format!("A new pod replaces the old one (restart {count})"),
        ),
        Notice::InvalidSpec(why) => (EventType::Warning, "InvalidSpec", "Validate", why.clone()),
    };
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note.chars().take(MAX_NOTE_CHARS).collect()),
        action: action.to_owned(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_cut_and_failures_are_warnings() {
        let event = event(&Notice::PodFailed("é".repeat(2000)));
        assert!(matches!(event.type_, EventType::Warning));
        assert_eq!(event.note.unwrap().chars().count(), MAX_NOTE_CHARS);
    }
}
