//! One writer at a time, where the store has no conditional writes: who writes holds a lease in the bucket (FORMAT.md, section 7.3).
//!
//! ```text
//!            take: write, wait, read back               a whole period without a renewal
//!   nobody ─────────────────────────────> held ──────────────────────────────────────────> lapsed
//!                                         │  ^                                                │ │
//!                                         │  └──────────── still ours: taken again ───────────┘ │
//!                                         └───── another one's lease, or none ──> lost <────────┘
//! ```
//! Nobody's wall clock matters. A holder counts from its last renewal by a clock of its own that also counts while the machine
//! sleeps, and writes nothing once a period is over. Whoever wants the lease watches it for longer than that without seeing it change.
//!
//! The bucket is believed no further than this: whoever holds it can give or deny the lease to whom he likes, and so make two
//! machines write, or none. What two writers do to a directory index then shows as a fork or rollback to the one that has seen the other.

mod guard;
mod take;
#[cfg(test)]
mod tests;

pub use take::{News, take};

use crate::env::Env;
use crate::error::{Error, Kind, Result, fail};
use crate::format::VolumeKeys;
use crate::format::lease::{Lease, OBJECT_LEN};
use crate::format::names::LEASE;
use crate::store::{Capability, Cond, Span, Store};
use crate::types::{Hash, Time};
use bytes::Bytes;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// For so long after it was renewed a lease lets its holder write.
pub const PERIOD: Duration = Duration::from_secs(60);
/// How often it is renewed: every third of a period.
const BEAT: Duration = Duration::from_secs(20);
/// Pause before a renewal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Longest that one request for the lease may take.
const REQUEST: Duration = Duration::from_secs(20);
/// A lease that nobody is known to hold is read back after this. Whoever found it free as well has written by then, or knows that
/// it was slow.
const SETTLE: Duration = Duration::from_secs(3);
/// A lease that somebody may hold is read back after this: by then a living holder has looked, and stopped.
const SETTLE_LONG: Duration = Duration::from_secs(30);

/// What a lease is made of.
#[derive(Clone)]
pub struct Parts {
    /// The bucket, past everything that makes requests wait for each other.
    pub store: Arc<dyn Store>,
    /// The volume's keys.
    pub keys: Arc<VolumeKeys>,
    /// Clock and randomness.
    pub env: Env,
    /// Who this is: the same in all mounts from one place of local state.
    pub holder: [u8; 16],
    /// This machine's name, for people.
    pub host: String,
}

/// Whether somebody who writes to such a store needs the lease.
pub fn needed(caps: &Capability) -> bool {
    caps.write && !(caps.put_if_match && caps.put_if_absent)
}

/// How a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Ours: we may write.
    Held,
    /// It could not be renewed for a whole period: nothing is written until it is taken again.
    Lapsed,
    /// Somebody else has it. Nothing is written any more.
    Lost,
    /// It was given back.
    Released,
}

/// How a lease stands, with times by this machine's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// In one word.
    pub standing: Standing,
    /// When this mount took it.
    pub taken: Time,
    /// When it was renewed last.
    pub renewed: Time,
}

enum Hold {
    Ours,
    Lost(String),
    Released,
}

struct State {
    hold: Hold,
    sequence: u64,
    /// When the last renewal that succeeded was begun: by the clock that counts, and by that on the wall.
    renewed: Option<Duration>,
    renewed_at: Time,
}

/// Keeps the lease of one mount.
pub struct Keeper {
    parts: Parts,
    mount: [u8; 16],
    taken: Time,
    state: Mutex<State>,
    /// One exchange with the bucket at a time.
    turn: tokio::sync::Mutex<()>,
    /// Whether it is lost or given back.
    ended: watch::Sender<bool>,
}

/// What lies in the place of the lease.
enum Seen {
    Nothing,
    Lease(Lease),
    /// Something that is no lease of this volume.
    Other,
}

struct Sight {
    seen: Seen,
    /// Of the bytes.
    hash: Hash,
}

impl Keeper {
    fn new(parts: Parts) -> Keeper {
        let now = parts.env.clock.now();
        let state = State { hold: Hold::Ours, sequence: 0, renewed: None, renewed_at: now };
        let (mount, (ended, _)) = (parts.env.random(), watch::channel(false));
        Keeper { parts, mount, taken: now, state: Mutex::new(state), turn: tokio::sync::Mutex::default(), ended }
    }

    /// For how much longer we may write: an error says why not at all.
    fn left(&self) -> Result<Duration> {
        let state = self.state.lock();
        match &state.hold {
            Hold::Lost(why) => return fail(Kind::ReadOnly, why.clone()),
            Hold::Released => return fail(Kind::ReadOnly, "the lease of the volume was given back: the mount is ending"),
            Hold::Ours => {}
        }
        let age = state.renewed.map(|at| self.parts.env.clock.awake().saturating_sub(at));
        match age.and_then(|age| PERIOD.checked_sub(age)).filter(|left| !left.is_zero()) {
            Some(left) => Ok(left),
            None => fail(
                Kind::Unavailable,
                format!(
                    "the lease of the volume could not be renewed for {} s: nothing is written until the store answers, so that no other \
                     machine writes at the same time",
                    PERIOD.as_secs()
                ),
            ),
        }
    }

    /// Whether changes may be accepted: `ReadOnly`, with the reason, when not.
    pub fn permit(&self) -> Result<()> {
        match self.left() {
            Ok(_) => Ok(()),
            Err(e) => fail(Kind::ReadOnly, e.message().to_owned()),
        }
    }

    /// How it stands.
    pub fn account(&self) -> Account {
        let lapsed = self.left().is_err();
        let state = self.state.lock();
        let standing = match &state.hold {
            Hold::Lost(_) => Standing::Lost,
            Hold::Released => Standing::Released,
            Hold::Ours if lapsed => Standing::Lapsed,
            Hold::Ours => Standing::Held,
        };
        Account { standing, taken: self.taken, renewed: state.renewed_at }
    }

    /// Renews it until it is lost or given back; `told` hears when it is lost. Runs beside the mount.
    pub async fn keep(self: Arc<Self>, told: impl Fn(&Error) + Send) {
        let (mut failing, mut lapsed) = (false, false);
        loop {
            tokio::select! {
                () = sleep(self.next_beat()) => {}
                () = self.ended() => break,
            }
            match self.beat().await {
                Err(e) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!("the lease of the volume was not renewed, will be tried again: {e}");
                }
                Err(e) => tracing::debug!("the lease of the volume was not renewed: {e}"),
                Ok(()) => failing = false,
            }
            match self.left() {
                Err(e) if e.kind() == Kind::Unavailable && !lapsed => {
                    lapsed = true;
                    tracing::error!("{e}");
                    told(&e);
                }
                Ok(_) if lapsed => {
                    lapsed = false;
                    tracing::warn!("the lease of the volume is renewed, and changes are taken again");
                }
                _ => {}
            }
        }
        let lost = self.left().err().filter(|_| self.account().standing == Standing::Lost);
        if let Some(why) = lost {
            tracing::error!("{why}");
            told(&why);
        }
    }

    /// Returns when it is lost or given back.
    async fn ended(&self) {
        // The other end lives as long as we do.
        let _ = self.ended.subscribe().wait_for(|over| *over).await.is_ok();
    }

    fn next_beat(&self) -> Duration {
        let renewed = self.state.lock().renewed;
        let age = renewed.map_or(PERIOD, |at| self.parts.env.clock.awake().saturating_sub(at));
        // A third of a period after the last success; then every few seconds.
        BEAT.checked_sub(age).filter(|left| *left >= AGAIN).unwrap_or(AGAIN)
    }

    /// Looks whether it is still ours, and renews it.
    async fn beat(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        let read_at = Instant::now();
        let sight = self.look().await?;
        match self.left() {
            // Given back, or lost, while we looked.
            Err(e) if e.kind() == Kind::ReadOnly => return Ok(()),
            _ if !matches!(&sight.seen, Seen::Lease(l) if l.mount == self.mount) => self.lose(&sight.seen),
            Ok(_) => self.write().await?,
            // Somebody may have counted to the end as well.
            Err(_) => match self.claim(read_at, true).await? {
                take::Claim::Ours => {}
                take::Claim::Gone => self.lose(&Seen::Nothing),
                take::Claim::Beaten(seen) => self.lose(&seen),
            },
        }
        Ok(())
    }

    fn lose(&self, to: &Seen) {
        let who = match to {
            Seen::Lease(l) => {
                format!("{} has taken over this volume's lease ({} by its clock)", shown(&l.host), l.taken.rfc3339())
            }
            Seen::Nothing => "this volume's lease is gone from the bucket".to_owned(),
            Seen::Other => "this volume's lease was replaced by something else".to_owned(),
        };
        let why = format!(
            "{who}: the mount is read-only from now on. What is not uploaded stays in the sealed spool: unmount, and mount again when no \
             other machine writes"
        );
        let mut state = self.state.lock();
        if matches!(state.hold, Hold::Ours) {
            state.hold = Hold::Lost(why);
            self.ended.send_replace(true);
        }
    }

    /// Gives it back, at the end of a mount. Nothing is written from now on.
    pub async fn release(&self) -> Result<()> {
        {
            let mut state = self.state.lock();
            let lost = matches!(state.hold, Hold::Lost(_));
            if !lost {
                state.hold = Hold::Released;
            }
            self.ended.send_replace(true);
            if lost {
                return Ok(());
            }
        }
        let Ok(_turn) = timeout(REQUEST, self.turn.lock()).await else { return silent() };
        match self.look().await?.seen {
            Seen::Lease(l) if l.mount == self.mount => in_time(self.parts.store.delete(LEASE)).await,
            _ => Ok(()),
        }
    }

    async fn look(&self) -> Result<Sight> {
        let mut again = false;
        loop {
            let max = OBJECT_LEN as u64;
            let bytes = match in_time(self.parts.store.get(LEASE, Span::Whole { max }, None)).await {
                Ok(got) => got.bytes,
                Err(e) if e.kind() == Kind::NotFound => return Ok(Sight { seen: Seen::Nothing, hash: Hash::ZERO }),
                Err(e) if e.kind() == Kind::TooLarge => return Ok(Sight { seen: Seen::Other, hash: Hash::ZERO }),
                Err(e) => return Err(e),
            };
            let hash = Hash(crate::crypto::hash::sha256(&[&bytes]));
            match Lease::open(&self.parts.keys, &bytes) {
                Ok(lease) => return Ok(Sight { seen: Seen::Lease(lease), hash }),
                // A second look past every cache.
                Err(_) if !again => again = true,
                Err(_) => return Ok(Sight { seen: Seen::Other, hash }),
            }
        }
    }

    /// Writes the next version. It counts from when it was begun.
    async fn write(&self) -> Result<()> {
        let (begun, issued) = (self.parts.env.clock.awake(), self.parts.env.clock.now());
        self.put(issued).await?;
        self.renewed(begun, issued);
        Ok(())
    }

    async fn put(&self, issued: Time) -> Result<()> {
        let sequence = {
            let mut state = self.state.lock();
            state.sequence += 1;
            state.sequence
        };
        let lease = Lease {
            holder: self.parts.holder,
            mount: self.mount,
            sequence,
            taken: self.taken,
            issued,
            period: PERIOD.as_secs() as u32,
            host: crate::format::lease::host(&self.parts.host),
        };
        let bytes = Bytes::from(lease.seal(&self.parts.keys, &self.parts.env.random())?);
        in_time(self.parts.store.put(LEASE, vec![bytes], Cond::Any)).await.map(drop)
    }

    fn renewed(&self, begun: Duration, at: Time) {
        let mut state = self.state.lock();
        (state.renewed, state.renewed_at) = (Some(begun), at);
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("account", &self.account()).finish_non_exhaustive()
    }
}

fn silent<T>() -> Result<T> {
    fail(Kind::Unavailable, format!("the store gave no answer about the lease within {} s", REQUEST.as_secs()))
}

async fn in_time<T>(request: impl Future<Output = Result<T>>) -> Result<T> {
    match timeout(REQUEST, request).await {
        Ok(done) => done,
        Err(_) => silent(),
    }
}

/// A host's name for people.
fn shown(host: &str) -> &str {
    if host.is_empty() { "another machine" } else { host }
}
