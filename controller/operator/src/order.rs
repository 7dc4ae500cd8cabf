//! One order to a VM's runner: sent, waited for, logged, and told in the brain's words.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use controller_api::VirtualMachine;
use controller_lifecycle::{Ending, Event, What};
use guest_units::Chain;
use host_protocol::{Generation, Order, OrderResult, Outcome};
use kube::ResourceExt as _;

use crate::execute::Context;
use crate::metrics::ByOrder;
use crate::poll::plugged as shown;
use crate::runner_client::{RunnerClient, RunnerError};

/// From its decision to its sending an order takes no longer: a process that was stopped for a while sends nothing that
/// it decided before.
const SENT_WITHIN: Duration = Duration::from_secs(1);

/// Gives an order that was decided at `decided` to the runner, and waits for its end.
pub(crate) async fn give(
    context: Arc<Context>,
    vm: Arc<VirtualMachine>,
    runner: Option<(IpAddr, String)>,
    counter: u64,
    what: What,
    decided: Instant,
) -> Event {
    let generation = Generation { epoch: context.term.epoch, counter };
    let (resource, wanted) = match what {
        What::Cpu(cpu) => ("cpu", cpu.to_string()),
        What::Memory(memory) => ("memory", memory.to_string()),
    };
    let (name, namespace) = (vm.name_any(), vm.namespace());
    let not_sent = |reason: &str| Event::OrderFailed { generation: counter, reason: reason.into() };
    let Some((ip, pod)) = runner else { return not_sent("the pod has no address") };
    if !context.term.holds() || decided.elapsed() > SENT_WITHIN {
        return not_sent("the controller was stopped for a while");
    }
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
    done(outcome, generation, (&name, namespace.as_deref(), resource), ms)
}

/// The end of an order as an event, and in the log.
fn done(
    outcome: Result<Outcome, RunnerError>,
    generation: Generation,
    (vm, namespace, resource): (&str, Option<&str>, &str),
    ms: u64,
) -> Event {
    match outcome {
        Ok(Outcome { revision, plugged, result }) => {
            let (cpu, memory) = (plugged.cpu.to_string(), plugged.memory.to_string());
            let reason: String = format!("{result:?}").chars().take(300).collect();
            let result_label = result.label();
            tracing::info!(
                vm,
                namespace,
                generation = generation.counter,
                resource,
                result = result_label,
                ms,
                cpu,
                memory,
                reason,
                "order done"
            );
            told(Outcome { revision, plugged, result }, generation)
        }
        Err(err) => {
            let reason = Chain(&err).to_string();
            tracing::warn!(
                vm,
                namespace,
                generation = generation.counter,
                resource,
                result = "lost",
                ms,
                reason,
                "order done"
            );
            Event::OrderFailed { generation: generation.counter, reason }
        }
    }
}

/// What the brain is told. An order that is not over counts as one without an answer.
fn told(outcome: Outcome, generation: Generation) -> Event {
    let Generation { epoch, counter: generation } = generation;
    let ending = match outcome.result {
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
        OrderResult::Unsettled { reason } => {
            return Event::OrderFailed { generation, reason: short(&reason) };
        }
    };
    let plugged = shown(outcome.plugged);
    Event::OrderEnded { generation, revision: outcome.revision, plugged, ending }
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
        let told = |result| {
            let plugged = host_protocol::Plugged::default();
            told(Outcome { revision: 1, plugged, result }, Generation { epoch: 3, counter: 8 })
        };
        let ending = |result| match told(result) {
            Event::OrderEnded { generation: 8, revision: 1, ending, .. } => ending,
            other => panic!("{other:?}"),
        };
        let stale = |epoch| OrderResult::Stale { newest: Generation { epoch, counter: 9 } };
        assert_eq!(ending(stale(3)), Ending::Stale { newest: 9 });
        assert!(matches!(ending(stale(4)), Ending::Failed(_)), "a newer leader is obeyed");
        let veto = OrderResult::Vetoed { least: Bytes(5), reason: "a\nb".into() };
        assert_eq!(ending(veto), Ending::Vetoed { least: 5, reason: "a b".into() });
        let lost = Event::OrderFailed { generation: 8, reason: "silence".into() };
        assert_eq!(told(OrderResult::Unsettled { reason: "silence".into() }), lost);
        assert_eq!(short(&"x".repeat(1000)).len(), 300);
    }
}
