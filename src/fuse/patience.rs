//! How long a request may wait: until its deadline, or until the process that asks has been killed.

use std::time::Duration;
use tokio::time::Instant;

/// How often a waiting request looks after its process.
const LOOK: Duration = Duration::from_secs(1);
/// SIGKILL's bit in /proc/PID/status.
const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

/// Why a request is answered before its operation is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// The deadline passed.
    Late,
    /// The process has a SIGKILL pending (also the form that a fatal Ctrl-C or SIGTERM takes), and waits only for us.
    Killed,
}

impl GivenUp {
    /// What the request is answered with.
    pub(super) fn errno(self) -> i32 {
        match self {
            GivenUp::Late => libc::EIO,
            GivenUp::Killed => libc::EINTR,
        }
    }
}

/// Returns when waiting on has no sense.
pub(super) async fn patience(deadline: Instant, pid: u32) -> GivenUp {
    loop {
        tokio::time::sleep_until(deadline.min(Instant::now() + LOOK)).await;
        if Instant::now() >= deadline {
            return GivenUp::Late;
        }
        if killed(pid) {
            return GivenUp::Killed;
        }
    }
}

/// Whether thread `pid` has a SIGKILL pending. A thread that cannot be looked at (gone, another pid namespace) counts as alive.
fn killed(pid: u32) -> bool {
    pid != 0 && std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| sigkill_pending(&s))
}

fn sigkill_pending(status: &str) -> bool {
    status
        .lines()
        .filter_map(|l| l.strip_prefix("SigPnd:").or_else(|| l.strip_prefix("ShdPnd:")))
        .any(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|m| m & SIGKILL_BIT != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_pending_masks() {
        assert!(!sigkill_pending("Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000002\n"));
        assert!(sigkill_pending("Name:\tx\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(sigkill_pending("SigPnd:\t0000000000000000\nShdPnd:\t0000000000004100\n"));
        assert!(!sigkill_pending("SigPnd:\tnonsense\n"));
        assert!(!killed(std::process::id()));
        assert!(!killed(0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_is_kept() {
        let start = Instant::now();
        assert_eq!(patience(start + Duration::from_millis(2500), 0).await, GivenUp::Late);
        assert_eq!(start.elapsed().as_millis(), 2500);
        assert_eq!((GivenUp::Late.errno(), GivenUp::Killed.errno()), (libc::EIO, libc::EINTR));
    }
}
