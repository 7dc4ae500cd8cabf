//! Wakes the sampling when the kernel sees pressure. Only a wake-up: where it does not work, the
//! sampling goes by its own clock.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::Notify;

/// Waits and writes only.
const STACK: usize = 64 * 1024;

/// Calls `wake` when some thread has waited for `stall_usec` within `window_usec`, again and again,
/// from a thread of its own.
///
/// # Errors
/// When the thread cannot be started. That the trigger is not accepted is logged only.
pub(crate) fn watch(
    path: PathBuf,
    stall_usec: u32,
    window_usec: u32,
    wake: Arc<Notify>,
) -> io::Result<()> {
    std::thread::Builder::new().name("pressure".to_owned()).stack_size(STACK).spawn(move || {
        if let Err(err) = follow(&path, stall_usec, window_usec, &wake) {
            tracing::warn!(path = %path.display(), error = %err, "pressure is not watched");
        }
    })?;
    Ok(())
}

fn follow(path: &PathBuf, stall_usec: u32, window_usec: u32, wake: &Notify) -> io::Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    if let Err(refused) = arm(&mut file, stall_usec, window_usec) {
        // Without CAP_SYS_RESOURCE only windows of 2 s are accepted. The same share of it.
        let factor = 2_000_000 / window_usec.max(1);
        arm(&mut file, stall_usec.saturating_mul(factor), 2_000_000).map_err(|_| refused)?;
    }
    loop {
        let mut fds = [PollFd::new(&file, PollFlags::PRI)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(err) => return Err(err.into()),
        }
        let seen = fds[0].revents();
        if seen.contains(PollFlags::ERR) {
            return Err(io::Error::other("the pressure file is gone"));
        }
        if seen.contains(PollFlags::PRI) {
            wake.notify_one();
        }
    }
}

/// The kernel overwrites the last byte, so it gets one to spare.
fn arm(file: &mut File, stall_usec: u32, window_usec: u32) -> io::Result<()> {
    file.write_all(format!("some {stall_usec} {window_usec}\0").as_bytes())
}
