//! The lease of a store without conditional writes, for the time of a mount or of a command that mends: see [`crate::lease`].

use super::join::Unlocked;
use super::live::Reporter;
use crate::audit::Event;
use crate::disk::{self, Disk};
use crate::env::Env;
use crate::error::{Error, Kind, Result, fail};
use crate::fs::Sink;
use crate::lease::{self, Keeper, News, Parts};
use sd_notify::NotifyState;
use std::sync::Arc;
use std::time::Duration;

/// Where local state of a volume keeps who this is: 16 random bytes.
const HOLDER: &str = "holder";
/// Longest that a mount which ends waits for the store to take the lease back.
const LAST: Duration = Duration::from_secs(5);
/// systemd waits for a mount by so much longer than for the lease.
const BEYOND: Duration = Duration::from_secs(60);

/// Who this is, from one mount to the next.
fn holder(disk: &dyn Disk, env: &Env) -> Result<[u8; 16]> {
    let kept = match disk::read_all(disk, HOLDER, 16) {
        Err(e) if !matches!(e.kind(), Kind::NotFound | Kind::TooLarge) => return Err(e),
        kept => kept.ok().and_then(|bytes| bytes.try_into().ok()),
    };
    if let Some(kept) = kept {
        return Ok(kept);
    }
    let new: [u8; 16] = env.random();
    disk::replace(disk, HOLDER, &new)?;
    Ok(new)
}

/// This machine's name, for people.
pub fn host() -> String {
    nix::unistd::gethostname().map_or_else(|_| "a machine".to_owned(), |h| h.to_string_lossy().into_owned())
}

/// Where the store takes one writer at a time: takes the lease, puts it between the store and whoever writes, and keeps it. `None`,
/// and no request, where the store has conditional writes. The local state on `disk` must be locked by this process. `reporter`
/// hears what becomes of it.
pub async fn take(
    unlocked: &mut Unlocked,
    disk: &dyn Disk,
    env: &Env,
    by_hand: bool,
    reporter: Option<Arc<Reporter>>,
) -> Result<Option<Arc<Keeper>>> {
    let stack = &mut unlocked.stack;
    if !lease::needed(&stack.store.caps()) {
        return Ok(None);
    }
    let (keys, holder) = (unlocked.volume.keys.clone(), holder(disk, env)?);
    let parts = Parts { store: stack.beside.clone(), keys, env: env.clone(), holder, host: host() };
    let heard = |news: News| match news {
        News::Waiting { holder, most } => {
            let seconds = most.as_secs();
            tracing::warn!(
                "the volume may be in use by {holder}; its store takes one writer at a time: waiting up to {seconds} s to see whether that \
                 lease is renewed (--read-only needs none, --take-over does not wait)"
            );
            let more = NotifyState::ExtendTimeoutUsec((most + BEYOND).as_micros().try_into().unwrap_or(u32::MAX));
            // Without systemd nobody has to know.
            let _ = sd_notify::notify(&[more]);
        }
        News::TakenOver { holder } => {
            tracing::warn!("taking the lease of the volume over from {holder}; what is written there from now on stays there");
            event(reporter.as_deref(), "taken-over", holder);
        }
    };
    let keeper = lease::take(parts, by_hand, &heard).await?;
    tracing::info!(
        "this mount holds the lease of the volume: the store has no conditional writes and takes one writer at a time"
    );
    stack.store = keeper.guard(stack.store.clone());
    let told = move |e: &Error| {
        let what = if e.kind() == Kind::ReadOnly { "lost" } else { "lapsed" };
        event(reporter.as_deref(), what, e.message().to_owned());
        if let Some(r) = &reporter {
            r.trouble(e);
        }
    };
    tokio::spawn(keeper.clone().keep(told));
    Ok(Some(keeper))
}

fn event(reporter: Option<&Reporter>, what: &str, detail: String) {
    if let Some(r) = reporter {
        r.event(Event::Lease { what: what.to_owned(), detail });
    }
}

/// Gives it back. Where that fails it runs out by itself, and this machine gets it back at once.
pub async fn release(keeper: Option<&Arc<Keeper>>) {
    let Some(keeper) = keeper else { return };
    let silent = || fail(Kind::Unavailable, "the store does not answer");
    if let Err(e) = tokio::time::timeout(LAST, keeper.release()).await.unwrap_or_else(|_| silent()) {
        let seconds = lease::PERIOD.as_secs();
        tracing::warn!(
            "the lease of the volume could not be given back; other machines can write about {seconds} s from now: {e}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    #[test]
    fn who_this_is_stays_and_is_made_anew_only_where_it_cannot_be_read() {
        let (disk, env) = (SimDisk::new(1).process(), Env::real());
        let first = holder(&*disk, &env).unwrap();
        assert_eq!(holder(&*disk, &env).unwrap(), first);
        for damaged in [&b"short"[..], &[7; 17]] {
            disk::replace(&*disk, HOLDER, damaged).unwrap();
            let next = holder(&*disk, &env).unwrap();
            assert_ne!(next, first);
            assert_eq!(holder(&*disk, &env).unwrap(), next);
        }
    }
}
