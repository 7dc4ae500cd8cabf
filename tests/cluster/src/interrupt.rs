//! Ctrl-C and SIGTERM as a flag that every wait of this tool looks at, so that a stop always passes through the clean-up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
/// Whether a stop was asked for and then forgotten.
static WAS: AtomicBool = AtomicBool::new(false);

fn flag() -> &'static Arc<AtomicBool> {
    FLAG.get_or_init(|| Arc::new(AtomicBool::new(false)))
}

/// Catches SIGINT, SIGTERM and SIGHUP from now on; called once, at the start of a binary.
pub fn install() -> Result<()> {
    for signal in
        [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
    {
        signal_hook::flag::register(signal, Arc::clone(flag()))
            .with_context(|| format!("catch signal {signal}"))?;
    }
    Ok(())
}

/// Whether a stop was asked for.
pub fn interrupted() -> bool {
    flag().load(Ordering::Relaxed)
}

/// Fails when a stop was asked for; called between the steps of anything long.
pub fn check() -> Result<()> {
    if interrupted() {
        bail!("stopped by a signal");
    }
    Ok(())
}

/// Forgets the signal, so that the clean-up after it can run commands of its own.
pub fn forget() {
    if flag().swap(false, Ordering::Relaxed) {
        WAS.store(true, Ordering::Relaxed);
    }
}

/// Whether a stop was asked for at any time, for the exit code.
pub fn ever() -> bool {
    interrupted() || WAS.load(Ordering::Relaxed)
}
