//! The life of the process that serves a mount: signals, control socket, systemd, and an orderly end.
//!
//! ```text
//!              TERM/INT, unmount request                all uploaded
//!   Serving ────────────────────────────> Draining ─────────────────> wiped, exit 0
//!      ├─ lazily: serves what is open ───────┤ │
//!      └────── umount(8) by anybody ─────────┘ │ second TERM/INT, `unmount --stop`, unmount-timeout after a signal
//!                                              └────────> caches wiped, sealed journal kept, exit 6
//! ```
//! Unmounting comes first, uploads after: a program that still has files open is heard of at once, not after an hour of uploads,
//! and what umount(8) does outside of our control is the same path.

use super::failure::{Failure, Outcome};
use super::logs::LogHandle;
use super::mounted::Mounted;
use super::socket::{Listener, Phase, Server, Unmount, still_pending};
use super::status::unsent;
use crate::error::{Error, Kind, Result, fail};
use crate::store::temporary;
use sd_notify::NotifyState;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval, sleep, sleep_until};

/// Pause before uploads are tried again while the store is away.
const DRAIN_AGAIN: Duration = Duration::from_secs(2);
/// How often systemd hears from us while draining, and by how much its patience is extended.
const DRAIN_TICK: Duration = Duration::from_secs(5);
/// How long connections get for their last line.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Unmount requests that wait for the main loop.
const MAX_UNMOUNTS: usize = 4;

/// The signals of a mount process, caught from now on.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr1: Signal,
    usr2: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    End,
    DropCaches,
    LogStatus,
    CycleLevel,
}

impl Signals {
    /// Catches them. Must be called inside the runtime, before anything is mounted.
    pub fn catch() -> Result<Signals> {
        let on = |kind| signal(kind).map_err(|e| Error::with_source(Kind::Unavailable, "catching signals", e));
        Ok(Signals {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            hup: on(SignalKind::hangup())?,
            usr1: on(SignalKind::user_defined1())?,
            usr2: on(SignalKind::user_defined2())?,
        })
    }

    /// Waits for TERM or INT; the others mean nothing yet.
    pub async fn end(&mut self) {
        while self.next().await != Wish::End {}
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.term.recv() => Wish::End,
            _ = self.int.recv() => Wish::End,
            _ = self.hup.recv() => Wish::DropCaches,
            _ = self.usr1.recv() => Wish::LogStatus,
            _ = self.usr2.recv() => Wish::CycleLevel,
        }
    }
}

/// Everything around a mount.
pub struct Daemon {
    /// The mount.
    pub mounted: Arc<dyn Mounted>,
    /// Its control socket.
    pub listener: Listener,
    /// Its signals.
    pub signals: Signals,
    /// Its log.
    pub log: LogHandle,
    /// How long uploads may take after TERM or INT.
    pub unmount_timeout: Option<Duration>,
}

/// Why it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Signal,
    Request,
    /// A request that wants no uploads.
    Stop,
    Kernel,
}

impl Daemon {
    /// Serves until the mount has ended and is wiped. `ready` is called once all of it answers.
    pub async fn run(mut self, ready: impl FnOnce() -> Result<()>) -> Outcome<()> {
        let (phase, phase_rx) = watch::channel(Phase::Serving);
        let (unmounts_tx, mut unmounts) = mpsc::channel(MAX_UNMOUNTS);
        let server = Server::new(self.mounted.clone(), phase_rx, unmounts_tx);
        let ready = ready();
        notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
        let ended = {
            let listener = &self.listener;
            let mounted = self.mounted.clone();
            let accepting = listener.serve(&server);
            tokio::pin!(accepting);
            let life = async {
                let cause = match ready {
                    Ok(()) => serving(&*mounted, &mut self.signals, &self.log, &mut unmounts, &phase).await,
                    Err(e) => {
                        tracing::warn!("unmounting again: {e}");
                        let _ = mounted.detach(true).await;
                        Cause::Signal
                    }
                };
                // Nobody receives only when every connection has gone.
                let _ = phase.send(Phase::Draining);
                draining(&*mounted, &mut self.signals, &self.log, &mut unmounts, cause, self.unmount_timeout).await
            };
            tokio::select! {
                ended = life => ended,
                () = &mut accepting => Err(Failure::new(crate::cli::Exit::Other, "the control socket is gone")),
            }
        };
        let ended = wipe(&*self.mounted, ended).await;
        // Whoever hears that it is over may mount again at once: the socket and its lock must be gone first.
        drop(self.listener);
        drop(unmounts);
        let _ = phase.send(Phase::Ended(ended.clone()));
        server.finish(LAST_WORDS).await;
        ended
    }
}

/// Until it is unmounted, whoever does it.
///
/// Taken out of the tree lazily, it goes on for as long as something is open in it.
async fn serving(
    mounted: &dyn Mounted,
    signals: &mut Signals,
    log: &LogHandle,
    unmounts: &mut mpsc::Receiver<Unmount>,
    phase: &watch::Sender<Phase>,
) -> Cause {
    let mut lingers = false;
    let watchdog = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    let mut tick = interval(watchdog.unwrap_or(Duration::from_secs(3600)).max(Duration::from_millis(100)));
    loop {
        tokio::select! {
            () = mounted.detached() => {
                tracing::info!("{}; uploading what is left", if lingers { "the last file was closed" } else { "unmounted from outside" });
                return if lingers { Cause::Request } else { Cause::Kernel };
            }
            Some(request) = unmounts.recv() => {
                let result = match lingers {
                    true if request.lazy || request.stop => Ok(()),
                    true => fail(Kind::Busy, "files of the mount are still open, though it is out of the directory tree"),
                    false => mounted.detach(request.lazy).await,
                };
                let detached = result.is_ok();
                let stops = detached && request.stop;
                lingers |= detached && request.lazy && !stops;
                if lingers {
                    let _ = phase.send(Phase::Lingering);
                }
                let _ = request.answer.send(result.map_err(Failure::from));
                if stops {
                    return Cause::Stop;
                }
                if detached && !lingers {
                    return Cause::Request;
                }
            }
            wish = signals.next() => if wish == Wish::End {
                tracing::info!("ending: a signal");
                if let Err(e) = mounted.detach(false).await {
                    tracing::warn!("files are still open; detaching all the same: {e}");
                    if let Err(e) = mounted.detach(true).await {
                        tracing::error!("the mount cannot be detached: {e}");
                    }
                }
                return Cause::Signal;
            } else {
                obey(wish, mounted, log);
            },
            _ = tick.tick() => if watchdog.is_some() { notify(&[NotifyState::Watchdog]) },
        }
    }
}

fn obey(wish: Wish, mounted: &dyn Mounted, log: &LogHandle) {
    match wish {
        Wish::DropCaches => {
            mounted.drop_caches();
            tracing::info!("caches dropped");
        }
        Wish::LogStatus => match serde_json::to_string(&mounted.status()) {
            Ok(status) => tracing::info!("status: {status}"),
            Err(e) => tracing::warn!("status: {e}"),
        },
        Wish::CycleLevel => tracing::warn!("log level is now {}", log.cycle()),
        Wish::End => {}
    }
}

/// Until everything is in the bucket, or somebody will not wait for it.
async fn draining(
    mounted: &dyn Mounted,
    signals: &mut Signals,
    log: &LogHandle,
    unmounts: &mut mpsc::Receiver<Unmount>,
    cause: Cause,
    limit: Option<Duration>,
) -> Outcome<()> {
    notify(&[NotifyState::Stopping, NotifyState::Status("uploading what is left")]);
    let deadline = limit.filter(|_| cause == Cause::Signal).and_then(|l| Instant::now().checked_add(l));
    let far = Instant::now() + Duration::from_secs(365 * 86_400);
    let mut ends = u32::from(cause == Cause::Signal);
    let mut tick = interval(DRAIN_TICK);
    if cause == Cause::Stop && !mounted.status().pending.is_empty() {
        return Err(left_behind(mounted));
    }
    let upload = upload_all(mounted);
    tokio::pin!(upload);
    loop {
        tokio::select! {
            uploaded = &mut upload => return uploaded,
            // It is detached already; the connection now waits for the end.
            Some(request) = unmounts.recv() => {
                let _ = request.answer.send(Ok(()));
                if request.stop && !mounted.status().pending.is_empty() {
                    return Err(left_behind(mounted));
                }
            }
            wish = signals.next() => if wish == Wish::End {
                ends += 1;
                if ends > 1 {
                    return Err(left_behind(mounted));
                }
                tracing::info!("uploads are not finished; a second signal keeps the journal and ends");
            } else {
                obey(wish, mounted, log);
            },
            () = sleep_until(deadline.unwrap_or(far)) => return Err(left_behind(mounted)),
            _ = tick.tick() => {
                let left = unsent(&mounted.status().pending);
                let line = if left.is_empty() { "ending: nothing is left to upload".into() } else { format!("uploading: {left} left") };
                let more = NotifyState::ExtendTimeoutUsec((DRAIN_TICK * 4).as_micros() as u32);
                notify(&[more, NotifyState::Status(&line), NotifyState::Watchdog]);
            }
        }
    }
}

fn left_behind(mounted: &dyn Mounted) -> Failure {
    let mut failure = still_pending(mounted.status().pending);
    failure.message = "ended before everything was in the bucket; the sealed journal is kept, and the next mount goes on".into();
    failure
}

async fn upload_all(mounted: &dyn Mounted) -> Outcome<()> {
    loop {
        match mounted.drain().await {
            Ok(()) => return Ok(()),
            Err(e) if temporary(e.kind()) => {
                tracing::warn!("uploads wait for the store: {e}");
                sleep(DRAIN_AGAIN).await;
            }
            Err(e) => {
                tracing::error!("uploads failed; the sealed journal is kept: {e}");
                return Err(e.context("not everything could be uploaded; the sealed journal is kept for the next mount").into());
            }
        }
    }
}

async fn wipe(mounted: &dyn Mounted, ended: Outcome<()>) -> Outcome<()> {
    let wiped = mounted.wipe(ended.is_err()).await;
    match (ended, wiped) {
        (Ok(()), Ok(())) => {
            tracing::info!("all is in the bucket; local traces are wiped");
            Ok(())
        }
        (Ok(()), Err(e)) => Err(e.context("all is in the bucket, but local traces could not be wiped").into()),
        (Err(failure), wiped) => {
            if let Err(e) = wiped {
                tracing::error!("local traces could not be wiped: {e}");
            }
            Err(failure)
        }
    }
}

/// Tells systemd, if it listens.
fn notify(states: &[NotifyState]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::debug!("systemd does not take our notice: {e}");
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
