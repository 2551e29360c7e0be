//! Taking the lease: when it is free, our own from before, run out, or taken over by hand.

use super::*;

/// How often a lease of somebody else is looked at, while we wait for its end.
const POLL: Duration = Duration::from_secs(5);
/// Times that a lease which vanishes under our hands is written again.
const TRIES: u32 = 3;

/// What a person should hear while the lease is being taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Somebody holds it, or held it and died: we look whether it is renewed, for so long at most.
    Waiting {
        /// Who, and since when.
        holder: String,
        /// How long.
        most: Duration,
    },
    /// It is taken away from somebody.
    TakenOver {
        /// Who, and since when.
        holder: String,
    },
}

/// How an attempt ended.
pub(super) enum Claim {
    Ours,
    /// What we wrote was deleted.
    Gone,
    /// Somebody else wrote as well.
    Beaten(Seen),
}

/// The lease of somebody else, and since when it has not changed.
struct Watched {
    hash: Hash,
    since: Instant,
}

/// Takes the lease, or fails with `Busy` and a sentence that says who has it. `by_hand` takes it from whoever has it.
pub async fn take(parts: Parts, by_hand: bool, tell: &(dyn Fn(News) + Sync)) -> Result<Arc<Keeper>> {
    let keeper = Keeper::new(parts);
    let (mut watched, mut tries, mut told) = (None, 0, false);
    loop {
        let read_at = Instant::now();
        let sight = keeper.look().await.map_err(|e| e.context("reading the lease of the volume"))?;
        let contested = match &sight.seen {
            Seen::Nothing => false,
            // The lock on the local state is ours: whoever wrote this is dead.
            Seen::Lease(l) if l.holder == keeper.parts.holder => false,
            other if by_hand => {
                if !std::mem::replace(&mut told, true) {
                    tell(News::TakenOver { holder: described(other) });
                }
                true
            }
            other => {
                if !run_out(&mut watched, &sight, read_at, tell)? {
                    sleep(POLL).await;
                    continue;
                }
                tracing::warn!("the lease of {} has run out, and is taken", described(other));
                false
            }
        };
        match keeper.claim(read_at, contested).await.map_err(|e| e.context("taking the lease of the volume"))? {
            Claim::Ours => return Ok(Arc::new(keeper)),
            Claim::Gone if tries < TRIES => tries += 1,
            Claim::Gone => {
                return fail(
                    Kind::Busy,
                    "the lease of the volume is deleted whenever it is written: something removes .smpfs/lease",
                );
            }
            Claim::Beaten(by) => return Err(busy(&by)),
        }
    }
}

/// Whether a lease has been seen unchanged for longer than its holder may write. `Busy` when it changes meanwhile: somebody lives.
fn run_out(watched: &mut Option<Watched>, sight: &Sight, read_at: Instant, tell: &(dyn Fn(News) + Sync)) -> Result<bool> {
    let period = match &sight.seen {
        Seen::Lease(l) => Duration::from_secs(l.period.into()),
        _ => PERIOD,
    };
    let most = period * 3 / 2;
    match watched {
        Some(w) if w.hash != sight.hash => Err(busy(&sight.seen)),
        Some(w) => Ok(read_at.saturating_duration_since(w.since) > most),
        None => {
            tell(News::Waiting { holder: described(&sight.seen), most });
            *watched = Some(Watched { hash: sight.hash, since: Instant::now() });
            Ok(false)
        }
    }
}

fn described(seen: &Seen) -> String {
    match seen {
        Seen::Lease(l) => {
            format!("{}, since {}, last renewed {} by its clock", shown(&l.host), l.taken.rfc3339(), l.issued.rfc3339())
        }
        _ => "something that is no lease of this volume (.smpfs/lease)".to_owned(),
    }
}

fn busy(by: &Seen) -> Error {
    let who = match by {
        Seen::Lease(_) => format!("the volume is being written by {}", described(by)),
        _ => format!("the lease of the volume is held by {}, which changes", described(by)),
    };
    Error::new(
        Kind::Busy,
        format!(
            "{who}; its store has no conditional writes and takes one writer at a time. Unmount it there, or mount with --read-only; if nothing \
             writes there any more, `smpfs mount --take-over` takes the lease away"
        ),
    )
}

impl Keeper {
    /// Writes our lease, waits until whoever else wants it has written too, and looks whose it is. `read_at`: before it was read
    /// last. `contested`: somebody may be writing to the volume now.
    pub(super) async fn claim(&self, read_at: Instant, contested: bool) -> Result<Claim> {
        let (begun, issued) = (self.parts.env.clock.awake(), self.parts.env.clock.now());
        self.put(issued).await?;
        // Who was slow may have written over somebody that has read back already, and who will see that at the next renewal.
        let slow = read_at.elapsed() > SETTLE;
        tokio::select! {
            () = sleep(if contested || slow { SETTLE_LONG } else { SETTLE }) => {}
            () = self.ended() => return fail(Kind::Interrupted, "the mount is ending"),
        }
        Ok(match self.look().await?.seen {
            Seen::Lease(l) if l.mount == self.mount => {
                self.renewed(begun, issued);
                Claim::Ours
            }
            Seen::Nothing => Claim::Gone,
            other => Claim::Beaten(other),
        })
    }
}
