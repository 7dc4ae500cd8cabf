//! One order to a VM's runner: sent, waited for, logged, and told in the brain's words.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use controller_api::VirtualMachine;
use controller_lifecycle::{Ending, Event, What};
use host_protocol::{Generation, Order, OrderResult, Outcome};
use kube::ResourceExt as _;

use crate::error::chain;
use crate::execute::Context;
use crate::metrics::ByOrder;
use crate::poll::plugged as shown;
use crate::runner_client::{RunnerClient, RunnerError};

/// Gives an order to the runner and waits for its end.
pub(crate) async fn give(
    context: Arc<Context>,
    vm: Arc<VirtualMachine>,
    runner: Option<(IpAddr, String)>,
    counter: u64,
    what: What,
) -> Event {
    let generation = Generation { epoch: context.term.epoch, counter };
    let (resource, wanted) = match what {
        What::Cpu(cpu) => ("cpu", cpu.to_string()),
        What::Memory(memory) => ("memory", memory.to_string()),
    };
    let (name, namespace) = (vm.name_any(), vm.namespace());
    let Some((ip, pod)) = runner else {
        return Event::OrderFailed {
            generation: counter,
            reason: "the pod has no address".to_owned(),
        };
    };
    let order = Order {
        generation,
        what: match what {
            What::Cpu(cpu) => host_protocol::What::SetCpu(cpu),
            What::Memory(memory) => host_protocol::What::SetMemory(memory),
        },
    };
    tracing::info!(
        vm = name,
        namespace,
        generation = counter,
        epoch = context.term.epoch,
        resource,
        wanted,
        "order sent"
    );
    let begun = Instant::now();
    let mut client = RunnerClient::new(&pod, ip, context.certs.keys(), context.tasks.clone());
    let outcome = client.order(&order).await;
    let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    if let Ok(Outcome { result: OrderResult::Stale { newest }, .. }) = &outcome {
        context.term.saw(newest.epoch);
    }
    let result = outcome.as_ref().map_or("lost", |outcome| outcome.result.label());
    context.metrics.orders.get_or_create(&ByOrder { resource, result }).inc();
    done(outcome, &generation, (&name, namespace.as_deref(), resource), ms)
}

/// The end of an order as an event, and in the log.
fn done(
    outcome: Result<Outcome, RunnerError>,
    generation: &Generation,
    (vm, namespace, resource): (&str, Option<&str>, &str),
    ms: u64,
) -> Event {
    let Generation { epoch, counter: generation } = *generation;
    match outcome {
        Ok(Outcome { revision, plugged, result }) => {
            let (cpu, memory) = (plugged.cpu.to_string(), plugged.memory.to_string());
            let reason: String = format!("{result:?}").chars().take(300).collect();
            let result_label = result.label();
            tracing::info!(
                vm,
                namespace,
                generation,
                resource,
                result = result_label,
                ms,
                cpu,
                memory,
                reason,
                "order done"
            );
            let (plugged, ending) = (shown(plugged), ending(result, epoch));
            Event::OrderEnded { generation, revision, plugged, ending }
        }
        Err(err) => {
            let reason = chain(&err);
            tracing::warn!(
                vm,
                namespace,
                generation,
                resource,
                result = "lost",
                ms,
                reason,
                "order done"
            );
            Event::OrderFailed { generation, reason }
        }
    }
}

fn ending(result: OrderResult, epoch: u64) -> Ending {
    match result {
        OrderResult::Done => Ending::Done,
        OrderResult::Partial { reason } => Ending::Partial(short(&reason)),
        OrderResult::Vetoed { least, reason } => {
            Ending::Vetoed { least: least.0, reason: short(&reason) }
        }
        OrderResult::Stale { newest } if newest.epoch <= epoch => {
            Ending::Stale { newest: newest.counter }
        }
        OrderResult::Stale { .. } => {
            Ending::Failed("the runner obeys a newer controller".to_owned())
        }
        OrderResult::Failed { reason } => Ending::Failed(short(&reason)),
    }
}

/// Part of it comes from the guest: limited, and without control characters.
fn short(reason: &str) -> String {
    reason.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use guest_units::Bytes;

    use super::*;

    #[test]
    fn endings_in_the_brains_words() {
        let stale = |epoch| OrderResult::Stale { newest: Generation { epoch, counter: 9 } };
        assert_eq!(ending(stale(3), 3), Ending::Stale { newest: 9 });
        assert!(matches!(ending(stale(4), 3), Ending::Failed(_)), "a newer leader is obeyed");
        let veto = OrderResult::Vetoed { least: Bytes(5), reason: "a\nb".into() };
        assert_eq!(ending(veto, 3), Ending::Vetoed { least: 5, reason: "a b".into() });
        assert_eq!(short(&"x".repeat(1000)).len(), 300);
    }
}
