//! Amounts out of Kubernetes' maps of quantities.

use std::collections::BTreeMap;

use guest_units::{Bytes, MilliCpu};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use scheduler_ledger::Amount;

/// CPU in thousandths; what is not readable counts as all there is, so that nothing is given away by mistake.
pub(crate) fn cpu(text: &str) -> u64 {
    text.parse::<MilliCpu>().map_or(u64::from(u32::MAX), |cpu| u64::from(cpu.0))
}

/// Memory in bytes, likewise.
pub(crate) fn memory(text: &str) -> u64 {
    text.parse::<Bytes>().map_or(u64::MAX / 4, |memory| memory.0)
}

/// CPU and memory of a map; what is absent is nothing.
pub(crate) fn amount(map: Option<&BTreeMap<String, Quantity>>) -> Amount {
    let get = |key: &str| map.and_then(|map| map.get(key)).map(|quantity| quantity.0.as_str());
    Amount { cpu_millis: get("cpu").map_or(0, cpu), memory_bytes: get("memory").map_or(0, memory) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_every_form() {
        assert_eq!((cpu("1500m"), cpu("2"), cpu("0.25")), (1500, 2000, 250));
        assert_eq!(
            (memory("1Gi"), memory("1500M"), memory("128974848")),
            (1 << 30, 1_500_000_000, 128_974_848)
        );
        assert_eq!(amount(None), Amount::ZERO);
        let map =
            [("cpu".to_owned(), Quantity("1".into())), ("x/y".to_owned(), Quantity("7".into()))];
        assert_eq!(amount(Some(&map.into())), Amount { cpu_millis: 1000, memory_bytes: 0 });
    }

    #[test]
    fn nonsense_is_more_than_any_node_has() {
        assert!(cpu("many") > 4_000_000);
        assert!(memory("-1") > 1 << 60);
    }
}
