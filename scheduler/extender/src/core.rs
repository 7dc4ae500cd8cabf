//! The one task that owns the ledger: events in, effects out. Questions that change nothing are answered from the books by
//! whoever asks, between two events: ten thousand names need not be handed over, and a permit waits for no queue of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Instant;

use guest_units::{Moment, Size};
use scheduler_ledger::{Action, Answer, Asked, Dump, Event, Ledger, Settings, Ticket, Why};
use scheduler_protocol::ObjectRef;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::effects::{Effects, ResizeOrder};
use crate::moves::MoveOrder;

/// What the owner of the ledger is told and asked. Whoever asks may have gone when the answer comes.
pub(crate) enum Command {
    Event(Event),
    Permit {
        asked: Asked,
        reply: oneshot::Sender<(Answer, Why)>,
    },
    /// Whether the pod may be bound, and in which epoch; if so, it counts from now on.
    Bind {
        pod_uid: String,
        node: String,
        reply: oneshot::Sender<Result<u64, Unbound>>,
    },
    Dump {
        reply: oneshot::Sender<Dump>,
    },
    /// Whether the owner takes commands.
    Alive {
        reply: oneshot::Sender<()>,
    },
}

/// Why a pod may not be bound.
#[derive(Debug)]
pub(crate) enum Unbound {
    /// The watch has not shown it yet.
    UnknownPod,
    /// For users.
    Refused(String),
}

/// A way to the owner of the ledger, and to its books.
#[derive(Clone)]
pub(crate) struct Core {
    commands: mpsc::Sender<Command>,
    books: Books,
}

/// Only the owner writes.
type Books = Arc<RwLock<Ledger>>;

/// The owner's end.
pub(crate) struct Inbox {
    pub(crate) commands: mpsc::Receiver<Command>,
    books: Books,
}

/// The owner of the ledger is gone: the process ends.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the ledger has ended")]
pub(crate) struct Ended;

impl Core {
    pub(crate) async fn tell(&self, event: Event) -> Result<(), Ended> {
        self.commands.send(Command::Event(event)).await.map_err(|_| Ended)
    }

    /// Asks, and waits for the answer.
    pub(crate) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Ended> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }

    /// Reads in the books as they are: commands that wait are not in them yet.
    pub(crate) fn read<T>(&self, question: impl FnOnce(&Ledger) -> T) -> Result<T, Ended> {
        // Poisoned: the owner has ended in the middle of an event.
        self.books.read().map(|ledger| question(&ledger)).map_err(|_| Ended)
    }
}

/// What those know of the ledger who must not wait for it. One number: neither half is ever seen without the other.
#[derive(Debug, Default)]
pub(crate) struct Known(AtomicU64);

impl Known {
    /// The highest epoch of any approval seen. None: not everything was listed yet.
    pub(crate) fn newest_epoch(&self) -> Option<u64> {
        self.0.load(Ordering::Relaxed).checked_sub(1)
    }

    pub(crate) fn note(&self, ledger: &Ledger) {
        let newest = ledger.complete().then(|| ledger.newest_epoch_seen().saturating_add(1));
        self.0.store(newest.unwrap_or(0), Ordering::Relaxed);
    }
}

/// Commands wait here while the ledger is busy.
const QUEUE: usize = 4096;
/// So many commands are taken in before their effects are started.
const BATCH: usize = 256;

pub(crate) fn channel(settings: Settings) -> (Core, Inbox) {
    let (send, commands) = mpsc::channel(QUEUE);
    let books = Arc::new(RwLock::new(Ledger::new(settings)));
    (Core { commands: send, books: Arc::clone(&books) }, Inbox { commands, books })
}

fn write(books: &Books) -> RwLockWriteGuard<'_, Ledger> {
    // There is no other writer that could have left them half-written.
    books.write().unwrap_or_else(PoisonError::into_inner)
}

/// An open request.
struct Open {
    reply: oneshot::Sender<(Answer, Why)>,
    vm: ObjectRef,
    want: Size,
}

/// The owner.
pub(crate) struct Owner {
    pub(crate) effects: Effects,
    pub(crate) known: Arc<Known>,
}

impl Owner {
    pub(crate) async fn run(self, inbox: Inbox, shutdown: CancellationToken) {
        let (Self { effects, known }, Inbox { mut commands, books }) = (self, inbox);
        let origin = Instant::now();
        let now = || Moment(origin.elapsed());
        let mut desk =
            Desk { open: HashMap::new(), requested: HashMap::new(), last_ticket: 0, effects };
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let wake_at = {
                let mut ledger = write(&books);
                let wake_at = desk.act(&mut ledger, now());
                known.note(&ledger);
                wake_at
            };
            let wake = async {
                match wake_at {
                    Some(at) => sleep_until((origin + at.0).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = commands.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    for command in batch.drain(..) {
                        desk.take(&mut write(&books), command, now());
                    }
                }
                () = wake => write(&books).handle(Event::Woke, now()),
                () = shutdown.cancelled() => return,
            }
        }
    }
}

struct Desk {
    open: HashMap<u64, Open>,
    /// What was last noted on the VM as requested, by its uid.
    requested: HashMap<String, Size>,
    last_ticket: u64,
    effects: Effects,
}

impl Desk {
    /// Starts everything that is to be done. Says when to look again.
    fn act(&mut self, ledger: &mut Ledger, now: Moment) -> Option<Moment> {
        loop {
            let actions = ledger.next(now);
            if actions.start.is_empty() {
                return actions.wake_at;
            }
            for todo in actions.start {
                ledger.handle(Event::Started(todo.id), now);
                self.start(todo.action, todo.why);
            }
        }
    }

    fn start(&mut self, action: Action, why: Why) {
        match action {
            Action::Answer { ticket, answer } => {
                let Some(Open { reply, vm, want }) = self.open.remove(&ticket.0) else { return };
                let permit = matches!(answer, Answer::Permit { .. });
                let _ = reply.send((answer, why));
                if permit && self.requested.insert(vm.uid.clone(), want) != Some(want) {
                    self.effects.note_requested(vm, want);
                }
            }
            Action::Resize { pod, version, epoch, number, requests } => {
                self.effects.resize(ResizeOrder { pod, version, epoch, number, requests }, why);
            }
            Action::Approve { vm, seal } => self.effects.approve(vm, seal, why),
            Action::LookUp { pod } => self.effects.start_look_up(pod),
            Action::Fence { pod, epoch, number, urgent } => {
                self.effects.fence_pod(pod, (epoch, number), urgent);
            }
            Action::Migrate { vm, pod, to, name, epoch } => {
                self.effects.migrate(MoveOrder { vm, pod, to, name, epoch }, why);
            }
            Action::EndMigration { migration, epoch } => {
                self.effects.end_migration(migration, epoch, why);
            }
            Action::Notice { vm, notice } => self.effects.notice(vm, notice),
        }
    }

    fn take(&mut self, ledger: &mut Ledger, command: Command, now: Moment) {
        match command {
            Command::Event(event) => {
                match &event {
                    Event::VmGone(uid) => drop(self.requested.remove(uid)),
                    Event::VmsListed(uids) => self.requested.retain(|uid, _| uids.contains(uid)),
                    _ => {}
                }
                ledger.handle(event, now);
            }
            Command::Permit { asked, reply } => {
                self.last_ticket += 1;
                let (ticket, vm, want) = (self.last_ticket, asked.vm.clone(), asked.want);
                self.open.insert(ticket, Open { reply, vm, want });
                ledger.handle(Event::Asked(Asked { ticket: Ticket(ticket), ..asked }), now);
            }
            Command::Bind { pod_uid, node, reply } => {
                let _ = reply.send(bind(ledger, &pod_uid, &node, now));
            }
            Command::Dump { reply } => {
                let _ = reply.send(ledger.dump());
            }
            Command::Alive { reply } => {
                let _ = reply.send(());
            }
        }
    }
}

fn bind(ledger: &mut Ledger, pod_uid: &str, node: &str, now: Moment) -> Result<u64, Unbound> {
    if !ledger.knows_pod(pod_uid) {
        return Err(Unbound::UnknownPod);
    }
    let (placed, epoch) = ledger.may_bind(pod_uid, node).map_err(Unbound::Refused)?;
    ledger.handle(Event::Placing(placed), now);
    Ok(epoch)
}
