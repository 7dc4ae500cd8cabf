//! What a pod demands of a node beside room: labels, tolerated taints, and the rest by a digest.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

/// What a pod that no scheduler could place demands of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demands {
    /// The same for pods that the same nodes are good for, as far as they tell.
    pub class: u64,
    /// The only node that it may go to, where it names one, as pods of a DaemonSet do.
    pub node: Option<String>,
    /// Labels that the node must have.
    pub labels: Vec<Label>,
    /// Taints that do not matter.
    pub tolerations: Vec<Toleration>,
}

/// A label by its hash: nodes have many and long ones, and all that is asked is whether two are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(u64);

impl Label {
    /// Of a key and its value.
    #[must_use]
    pub fn new(key: &str, value: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (key, value).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// What keeps pods away from a node. Taints that only ask to be avoided are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value, empty if it has none.
    pub value: String,
    /// Effect.
    pub effect: String,
}

/// Taints that do not matter to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Toleration {
    /// None: all keys.
    pub key: Option<String>,
    /// None: all values.
    pub value: Option<String>,
    /// None: all effects.
    pub effect: Option<String>,
}

impl Toleration {
    fn covers(&self, taint: &Taint) -> bool {
        let covers = |own: &Option<String>, its: &String| own.as_ref().is_none_or(|own| own == its);
        covers(&self.key, &taint.key)
            && covers(&self.value, &taint.value)
            && covers(&self.effect, &taint.effect)
    }
}

impl Demands {
    /// Whether a node with these labels (in order) and taints may be good for the pod.
    pub(crate) fn met_by(&self, labels: &[Label], taints: &[Taint]) -> bool {
        self.labels.iter().all(|label| labels.binary_search(label).is_ok())
            && taints.iter().all(|taint| self.tolerations.iter().any(|it| it.covers(taint)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_taints_are_matched_by_the_rules_of_kubernetes() {
        let taint =
            |key: &str| Taint { key: key.into(), value: "yes".into(), effect: "NoSchedule".into() };
        let tolerates = |key: Option<&str>, value: Option<&str>, effect: Option<&str>| Demands {
            tolerations: vec![Toleration {
                key: key.map(str::to_owned),
                value: value.map(str::to_owned),
                effect: effect.map(str::to_owned),
            }],
            ..Demands::default()
        };
        let gpu = [taint("gpu")];
        assert!(!Demands::default().met_by(&[], &gpu));
        assert!(tolerates(None, None, None).met_by(&[], &gpu));
        assert!(tolerates(Some("gpu"), None, Some("NoSchedule")).met_by(&[], &gpu));
        assert!(!tolerates(Some("gpu"), Some("no"), None).met_by(&[], &gpu));
        assert!(!tolerates(Some("gpu"), None, Some("NoExecute")).met_by(&[], &gpu));
        assert!(!tolerates(Some("gpu"), None, None).met_by(&[], &[taint("gpu"), taint("other")]));
        let mut labels = [Label::new("zone", "a"), Label::new("disk", "ssd")];
        labels.sort_unstable();
        let wants = |labels: &[Label]| Demands { labels: labels.to_vec(), ..Demands::default() };
        assert!(wants(&labels).met_by(&labels, &[]));
        assert!(!wants(&[Label::new("zone", "b")]).met_by(&labels, &[]));
        assert!(!wants(&[Label::new("zonea", "")]).met_by(&labels, &[]));
    }
}
