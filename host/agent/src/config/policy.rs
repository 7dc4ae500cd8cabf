//! Which policy sizes a VM: the file's, or the one that the VM's annotations ask for.

use std::collections::BTreeMap;

use controller_api::names;
use host_scaling::{Headroom, Policy, Reference, Retries, Rules};

use super::scaling::annotation;

/// A policy by its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Name {
    /// What a file means that names none, as the reference's own files do.
    #[default]
    Reference,
    Headroom,
}

impl Name {
    pub(crate) const ALL: &'static str = "\"headroom\" or \"reference\"";

    pub(crate) fn of(text: &str) -> Option<Self> {
        match text {
            "headroom" => Some(Self::Headroom),
            "reference" => Some(Self::Reference),
            _ => None,
        }
    }
}

/// The numbers of all policies, and which one holds where nothing else is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policies {
    pub(crate) default: Name,
    pub(crate) headroom: Headroom,
    pub(crate) reference: Reference,
    pub(crate) retries: Retries,
}

impl Policies {
    /// The policy of a VM with these annotations; what is wrong with them is said.
    pub(crate) fn of(
        &self,
        annotations: Option<&BTreeMap<String, String>>,
    ) -> Result<Policy, String> {
        let get = |key: &str| annotations.and_then(|all| all.get(key));
        let wrong = |key: &str, why: String| format!("annotation {key}: {why}");
        let mut reference = self.reference;
        // Checked under every policy: what a user has written is right, or is said to be wrong.
        if let Some(text) = get(names::ANNOTATION_CONFIG) {
            reference.config = annotation(text, &self.reference.config)
                .map_err(|problems| wrong(names::ANNOTATION_CONFIG, problems.0.join("; ")))?;
        }
        let name = match get(names::ANNOTATION_POLICY) {
            None => self.default,
            Some(text) => Name::of(text.trim()).ok_or_else(|| {
                let shown: String = text.chars().take(40).collect();
                wrong(names::ANNOTATION_POLICY, format!("{shown:?} is not {}", Name::ALL))
            })?,
        };
        Ok(match name {
            Name::Headroom => {
                Policy { rules: Rules::Headroom(self.headroom), retries: self.retries }
            }
            Name::Reference => {
                let retries = self.retries.like_reference();
                Policy { rules: Rules::Reference(reference), retries }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn policy(annotations: &[(&str, &str)]) -> Result<Policy, String> {
        let all = annotations.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
        crate::config::shipped().policies.of(Some(&all.collect()))
    }

    #[test]
    fn annotations_choose_the_policy_and_its_numbers() {
        let (name, config) = (names::ANNOTATION_POLICY, names::ANNOTATION_CONFIG);
        assert_eq!(policy(&[]).unwrap().rules, Rules::Headroom(Headroom::default()));
        let reference = policy(&[(name, "reference")]).unwrap();
        assert_eq!(reference.rules, Rules::Reference(Reference::default()));
        assert_eq!(reference.retries.growth_failed, Duration::from_secs(3));
        let own = [(name, " reference\n"), (config, r#"{"memoryUsageFractionTarget": 0.5}"#)];
        let Rules::Reference(own) = policy(&own).unwrap().rules else { panic!("{own:?}") };
        assert!((own.config.memory_usage_fraction_target - 0.5).abs() < 1e-9);
        assert!((own.config.load_average_fraction_target - 0.9).abs() < 1e-9, "as in the file");
    }

    #[test]
    fn what_is_wrong_is_said_whatever_the_policy() {
        let (name, config) = (names::ANNOTATION_POLICY, names::ANNOTATION_CONFIG);
        assert_eq!(
            policy(&[(name, "magic")]).unwrap_err(),
            "annotation autoscaling.neon.tech/policy: \"magic\" is not \"headroom\" or \"reference\""
        );
        let zero = r#"{"loadAverageFractionTarget": 0}"#;
        for name in [&[(config, zero)][..], &[(config, zero), (name, "reference")]] {
            let why = policy(name).unwrap_err();
            assert!(why.contains("loadAverageFractionTarget: 0 is not above 0"), "{why}");
        }
    }
}
