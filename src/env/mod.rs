//! The outside world: time and randomness, behind traits so that a test can hold both in its hand.

pub mod failpoint;

use crate::types::Time;
use nix::time::ClockId;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Wall-clock time. (Durations and sleeps go through tokio's clock, which tests can pause.)
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Time;
    /// Time since some moment in the past, which never goes back, and goes on while the machine sleeps.
    fn awake(&self) -> Duration {
        // The kernel has had this clock since 2.6.39: without it there is no time to count from.
        let now = ClockId::CLOCK_BOOTTIME.now().map(Duration::from);
        now.unwrap_or_default()
    }
}

/// Randomness fit for keys.
pub trait Rng: Send + Sync + 'static {
    /// Fills `out` with uniform random bytes.
    fn fill(&self, out: &mut [u8]);
}

/// Shared handles to both.
#[derive(Clone)]
pub struct Env {
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub rng: Arc<dyn Rng>,
}

impl Env {
    /// The machine's own clock and randomness.
    pub fn real() -> Env {
        Env { clock: Arc::new(SystemClock), rng: Arc::new(OsRng) }
    }

    /// `N` random bytes.
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        self.rng.fill(&mut out);
        out
    }
}

/// The machine's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Time {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(d) => Time { sec: d.as_secs() as i64, nsec: d.subsec_nanos() },
            Err(_) => Time::default(),
        }
    }
}

/// The operating system's randomness.
pub struct OsRng;

impl Rng for OsRng {
    fn fill(&self, out: &mut [u8]) {
        // Without randomness no key may be made: stopping is the only safe answer.
        #[allow(clippy::expect_used)]
        getrandom::fill(out).expect("the operating system gives no randomness");
    }
}
