//! Contenders for one lease, on a store without conditions and with clocks that disagree. Time is tokio's, and stands still until
//! everybody waits.

use super::take::Claim;
use super::*;
use crate::crypto::secmem::SecretKey;
use crate::env::Clock;
use crate::store::layers::{Fault, Faulty, Verb, Wrap};
use crate::store::memory::{CAPS, MemoryStore};
use crate::types::VolumeId;
use tokio::task::JoinHandle;

const YEAR: i64 = 365 * 86_400;

/// A wall clock that is wrong, and one that counts tokio's time and the sleep of the machine.
struct TestClock {
    wall: i64,
    base: Instant,
    slept: Mutex<Duration>,
}

impl Clock for TestClock {
    fn now(&self) -> Time {
        Time { sec: self.wall + self.base.elapsed().as_secs() as i64, nsec: 0 }
    }
    fn awake(&self) -> Duration {
        self.base.elapsed() + *self.slept.lock()
    }
}

/// One machine at the bucket.
struct Machine {
    parts: Parts,
    faulty: Arc<Faulty>,
    clock: Arc<TestClock>,
    news: Mutex<Vec<News>>,
}

fn keys(volume: u8) -> Arc<VolumeKeys> {
    Arc::new(VolumeKeys::derive(&SecretKey::new(&[1; 32]), VolumeId([volume; 16]), Vec::new()))
}

fn bucket() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::with_caps(Capability { put_if_absent: false, put_if_match: false, ..CAPS }))
}

fn machine(bucket: &Arc<MemoryStore>, name: &str, wall: i64) -> Machine {
    let faulty = Arc::new(Faulty::new(1));
    let clock = Arc::new(TestClock { wall, base: Instant::now(), slept: Mutex::default() });
    let store: Arc<dyn Store> = Arc::new(Wrap::new(bucket.clone(), faulty.clone()));
    let env = Env { clock: clock.clone(), ..Env::real() };
    let mut holder = [0; 16];
    holder[..name.len()].copy_from_slice(name.as_bytes());
    let parts = Parts { store, keys: keys(2), env, holder, host: name.to_owned() };
    Machine { parts, faulty, clock, news: Mutex::default() }
}

impl Machine {
    async fn take(&self, by_hand: bool) -> Result<Arc<Keeper>> {
        take(self.parts.clone(), by_hand, &|n| self.news.lock().push(n)).await
    }

    /// Takes it and keeps it.
    async fn hold(&self) -> (Arc<Keeper>, JoinHandle<()>) {
        let keeper = self.take(false).await.unwrap();
        let task = tokio::spawn(keeper.clone().keep(|_| {}));
        (keeper, task)
    }
}

async fn there(bucket: &MemoryStore) -> Option<Vec<u8>> {
    bucket.get(LEASE, Span::Whole { max: 1 << 20 }, None).await.ok().map(|got| got.bytes.to_vec())
}

async fn lease(bucket: &MemoryStore) -> Lease {
    Lease::open(&keys(2), &there(bucket).await.unwrap()).unwrap()
}

async fn put(bucket: &MemoryStore, bytes: &[u8]) {
    bucket.put(LEASE, vec![Bytes::copy_from_slice(bytes)], Cond::Any).await.unwrap();
}

async fn seconds(n: u64) {
    sleep(Duration::from_secs(n)).await;
}

fn standing(keeper: &Keeper) -> Standing {
    keeper.account().standing
}

#[test]
fn only_who_writes_without_conditions_needs_a_lease() {
    assert!(!needed(&CAPS) && !needed(&CAPS.read_only()));
    assert!(needed(&Capability { put_if_match: false, ..CAPS }) && needed(&Capability { put_if_absent: false, ..CAPS }));
}

#[tokio::test(start_paused = true)]
async fn a_free_lease_is_taken_renewed_and_given_back() {
    let bucket = bucket();
    let a = machine(&bucket, "a", 1_700_000_000);
    let (keeper, task) = a.hold().await;
    let first = lease(&bucket).await;
    assert_eq!((first.host.as_str(), first.sequence, first.period), ("a", 1, 60));
    seconds(600).await;
    let later = lease(&bucket).await;
    assert_eq!((later.mount, later.taken), (first.mount, first.taken));
    assert!((28..=31).contains(&later.sequence) && later.issued > first.issued, "{later:?}");
    assert_eq!((standing(&keeper), keeper.account().renewed), (Standing::Held, later.issued));
    keeper.permit().unwrap();
    // One look and one small write each time, and nothing else.
    assert_eq!(a.faulty.seen(Verb::Put), later.sequence);
    assert_eq!(a.faulty.seen(Verb::Get), later.sequence + 1);
    keeper.release().await.unwrap();
    task.await.unwrap();
    assert_eq!((there(&bucket).await, standing(&keeper)), (None, Standing::Released));
    assert_eq!(keeper.permit().unwrap_err().kind(), Kind::ReadOnly);
    assert!(a.news.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_two_that_want_it_at_once_one_gets_it() {
    for (first, later) in [(1, 1), (1, 1000), (900, 1), (1, 2900), (2900, 1)] {
        let bucket = bucket();
        let (a, b) = (machine(&bucket, "a", 0), machine(&bucket, "b", 40 * YEAR));
        // Both find it free, and write one after the other.
        a.faulty.script(Some(Verb::Put), 1, Fault::Latency(Duration::from_millis(first)));
        b.faulty.script(Some(Verb::Put), 1, Fault::Latency(Duration::from_millis(later)));
        let both = tokio::join!(a.take(false), b.take(false));
        let (held, beaten) = match both {
            (Ok(held), Err(e)) | (Err(e), Ok(held)) => (held, e),
            both => panic!("{first} {later}: {both:?}"),
        };
        assert_eq!(beaten.kind(), Kind::Busy, "{beaten}");
        assert_eq!(lease(&bucket).await.mount, held.mount);
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_slow_to_write_waits_until_the_other_one_has_stopped() {
    let bucket = bucket();
    let (a, b) = (machine(&bucket, "a", 0), machine(&bucket, "b", 0));
    b.faulty.script(Some(Verb::Put), 1, Fault::Latency(Duration::from_secs(15)));
    let slow = async {
        let keeper = b.take(false).await;
        (keeper, Instant::now())
    };
    let quick = async {
        let (keeper, task) = a.hold().await;
        keeper.permit().unwrap();
        task.await.unwrap();
        (keeper, Instant::now())
    };
    let ((kept, from), (lost, until)) = tokio::join!(slow, quick);
    assert_eq!((standing(&kept.unwrap()), standing(&lost)), (Standing::Held, Standing::Lost));
    assert!(until < from, "never both");
}

#[tokio::test(start_paused = true)]
async fn a_dead_holders_lease_runs_out_whatever_the_clocks_say() {
    for skew in [-50 * YEAR, -3600, 0, 3600, 50 * YEAR] {
        let bucket = bucket();
        let (a, b) = (machine(&bucket, "a", 1_700_000_000), machine(&bucket, "b", 1_700_000_000 + skew));
        drop(a.take(false).await.unwrap());
        let began = Instant::now();
        let kept = b.take(false).await.unwrap();
        assert!(began.elapsed() > PERIOD, "the other one might have been writing for so long");
        assert_eq!((standing(&kept), lease(&bucket).await.host.as_str()), (Standing::Held, "b"));
        let news = b.news.lock().clone();
        assert!(
            matches!(&news[..], [News::Waiting { holder, .. }] if holder.starts_with("a, since 2023-11-14T22:13:20")),
            "{news:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_living_holder_is_named_and_left_alone() {
    let bucket = bucket();
    let (a, b) = (machine(&bucket, "ward-3", 1_700_000_000), machine(&bucket, "b", 0));
    let (keeper, _task) = a.hold().await;
    seconds(11).await;
    let began = Instant::now();
    let e = b.take(false).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Busy);
    for part in ["ward-3, since 2023-11-14T22:13:20", "Unmount it there", "--read-only", "--take-over"] {
        assert!(e.to_string().contains(part), "{e}");
    }
    assert!(began.elapsed() < PERIOD, "it need not run out for that");
    assert_eq!(b.faulty.seen(Verb::Put), 0);
    seconds(300).await;
    assert_eq!(standing(&keeper), Standing::Held);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_given_back_meanwhile_is_free() {
    let bucket = bucket();
    let (a, b) = (machine(&bucket, "a", 0), machine(&bucket, "b", 0));
    let (keeper, _task) = a.hold().await;
    let (taken, ()) = tokio::join!(b.take(false), async {
        seconds(7).await;
        keeper.release().await.unwrap();
    });
    assert_eq!(standing(&taken.unwrap()), Standing::Held);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_writes_nothing_and_goes_on_when_it_is_still_its_own() {
    let bucket = bucket();
    let a = machine(&bucket, "a", 0);
    let (keeper, _task) = a.hold().await;
    let guarded = keeper.guard(bucket.clone());
    let write = || guarded.put("k", vec![Bytes::from_static(b"x")], Cond::Any);
    write().await.unwrap();
    a.faulty.script(None, u32::MAX, Fault::Before(Kind::Unavailable));
    seconds(30).await;
    write().await.unwrap();
    seconds(31).await;
    assert_eq!(standing(&keeper), Standing::Lapsed);
    let told = keeper.permit().unwrap_err();
    assert!(told.kind() == Kind::ReadOnly && told.to_string().contains("could not be renewed for 60 s"), "{told}");
    let before = there(&bucket).await;
    assert_eq!(write().await.unwrap_err().kind(), Kind::Unavailable, "uploads are tried again");
    guarded.get("k", Span::Last(1), None).await.unwrap();
    seconds(1000).await;
    assert_eq!(there(&bucket).await, before);
    a.faulty.clear();
    // Not at once: somebody may be about to take it.
    seconds(8).await;
    assert_eq!(standing(&keeper), Standing::Lapsed);
    seconds(40).await;
    assert_eq!(standing(&keeper), Standing::Held);
    write().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_late_finds_it_taken() {
    let bucket = bucket();
    let (a, b) = (machine(&bucket, "a", 0), machine(&bucket, "b", 0));
    let (keeper, task) = a.hold().await;
    a.faulty.script(None, u32::MAX, Fault::Before(Kind::Unavailable));
    let (other, _other_task) = b.hold().await;
    assert_eq!(standing(&keeper), Standing::Lapsed, "before the other one had it");
    a.faulty.clear();
    task.await.unwrap();
    let guarded = keeper.guard(bucket.clone());
    for told in [keeper.permit().unwrap_err(), guarded.delete("k").await.unwrap_err()] {
        assert_eq!(told.kind(), Kind::ReadOnly);
        assert!(told.to_string().starts_with("b has taken over") && told.to_string().contains("sealed spool"), "{told}");
    }
    keeper.release().await.unwrap();
    seconds(300).await;
    assert_eq!((standing(&other), standing(&keeper)), (Standing::Held, Standing::Lost));
}

#[tokio::test(start_paused = true)]
async fn a_write_on_its_way_is_given_up_when_the_lease_runs_out() {
    let bucket = bucket();
    let a = machine(&bucket, "a", 0);
    let keeper = a.take(false).await.unwrap();
    let mute = Arc::new(Faulty::new(1));
    let guarded = keeper.guard(Arc::new(Wrap::new(bucket.clone(), mute.clone())));
    mute.black_hole(true);
    let e = timeout(PERIOD * 2, guarded.put("k", vec![], Cond::Any)).await.expect("given up").unwrap_err();
    assert_eq!((e.kind(), standing(&keeper)), (Kind::Unavailable, Standing::Lapsed));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_writes_nothing_before_it_has_looked() {
    let bucket = bucket();
    let (a, b) = (machine(&bucket, "a", 0), machine(&bucket, "b", 0));
    let (keeper, task) = a.hold().await;
    *a.clock.slept.lock() += Duration::from_secs(7200);
    assert_eq!(standing(&keeper), Standing::Lapsed);
    assert_eq!(keeper.guard(bucket.clone()).delete("k").await.unwrap_err().kind(), Kind::Unavailable);
    // In these two hours another one came and went.
    put(&bucket, &{
        let stranger = Lease { mount: [9; 16], ..lease(&bucket).await };
        stranger.seal(&b.parts.keys, &[1; 24]).unwrap()
    })
    .await;
    task.await.unwrap();
    assert_eq!(standing(&keeper), Standing::Lost);
}

#[tokio::test(start_paused = true)]
async fn by_hand_it_is_taken_from_a_living_holder_who_stops_first() {
    let bucket = bucket();
    let (a, b) = (machine(&bucket, "a", 0), machine(&bucket, "b", 0));
    let (keeper, task) = a.hold().await;
    seconds(19).await;
    let (kept, lost) = tokio::join!(
        async {
            let kept = b.take(true).await.unwrap();
            (kept, Instant::now())
        },
        async {
            task.await.unwrap();
            Instant::now()
        }
    );
    assert!(lost < kept.1 && standing(&keeper) == Standing::Lost, "never both");
    assert!(matches!(&b.news.lock()[..], [News::TakenOver { holder }] if holder.starts_with("a, since 1970-01-01")));
    let _task = tokio::spawn(kept.0.clone().keep(|_| {}));
    seconds(300).await;
    assert_eq!((standing(&kept.0), lease(&bucket).await.host.as_str()), (Standing::Held, "b"));
}

#[tokio::test(start_paused = true)]
async fn after_a_kill_the_same_machine_has_its_own_back_at_once() {
    let bucket = bucket();
    let a = machine(&bucket, "a", 0);
    drop(a.take(false).await.unwrap());
    let began = Instant::now();
    let again = a.take(false).await.unwrap();
    assert_eq!((began.elapsed(), standing(&again)), (SETTLE, Standing::Held));
    assert!(a.news.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn deleted_replaced_and_replayed_leases_stop_the_holder_and_change_nothing_else() {
    let foreign = Lease::seal(
        &Lease {
            holder: [1; 16],
            mount: [2; 16],
            sequence: 3,
            taken: Time::default(),
            issued: Time::default(),
            period: 60,
            host: "x".into(),
        },
        &keys(3),
        &[0; 24],
    );
    for (what, bytes) in [
        ("gone from the bucket", None),
        ("replaced by something else", Some(b"garbage".to_vec())),
        ("replaced by something else", Some(vec![7; 4096])),
        ("replaced by something else", Some(foreign.unwrap())),
        (
            "x has taken over",
            Some({
                let (elder, old) = (bucket(), "x");
                drop(machine(&elder, old, 0).take(false).await.unwrap());
                there(&elder).await.unwrap()
            }),
        ),
    ] {
        let bucket = bucket();
        let a = machine(&bucket, "a", 0);
        let (keeper, task) = a.hold().await;
        match &bytes {
            None => bucket.delete(LEASE).await.unwrap(),
            Some(bytes) => put(&bucket, bytes).await,
        }
        task.await.unwrap();
        let told = keeper.permit().unwrap_err();
        assert!(told.kind() == Kind::ReadOnly && told.to_string().contains(what), "{told}");
        keeper.release().await.unwrap();
        assert_eq!(there(&bucket).await, bytes, "what is not ours is left as it is");
    }
    // An old one of our own is a store that answers late, or a bucket that plays: nobody else has taken it.
    let bucket = bucket();
    let (keeper, _task) = machine(&bucket, "a", 0).hold().await;
    let old = there(&bucket).await.unwrap();
    seconds(100).await;
    put(&bucket, &old).await;
    seconds(100).await;
    assert_eq!(standing(&keeper), Standing::Held);
    assert!(lease(&bucket).await.sequence > 8);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_lease_is_waited_for_as_one() {
    for garbage in [b"garbage".to_vec(), vec![7; 4096]] {
        let bucket = bucket();
        put(&bucket, &garbage).await;
        let a = machine(&bucket, "a", 0);
        let began = Instant::now();
        let keeper = a.take(false).await.unwrap();
        assert!(began.elapsed() > PERIOD && standing(&keeper) == Standing::Held);
        put(&bucket, &garbage).await;
        a.take(true).await.unwrap();
    }
    // Something that changes is somebody.
    let bucket = bucket();
    put(&bucket, b"one").await;
    let a = machine(&bucket, "a", 0);
    let (taken, ()) = tokio::join!(a.take(false), async {
        seconds(8).await;
        put(&bucket, b"two").await;
    });
    let e = taken.unwrap_err();
    assert!(e.kind() == Kind::Busy && e.to_string().contains(".smpfs/lease"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_deletes_every_lease_lets_nobody_write() {
    let bucket = bucket();
    let a = machine(&bucket, "a", 0);
    let eraser = tokio::spawn({
        let bucket = bucket.clone();
        async move {
            loop {
                seconds(1).await;
                bucket.delete(LEASE).await.unwrap();
            }
        }
    });
    assert_eq!(a.take(false).await.unwrap_err().kind(), Kind::Busy);
    eraser.abort();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_gives_no_lease() {
    let bucket = bucket();
    let a = machine(&bucket, "a", 0);
    a.faulty.black_hole(true);
    let e = a.take(false).await.unwrap_err();
    assert!(e.kind() == Kind::Unavailable && e.to_string().contains("the lease"), "{e}");
    a.faulty.clear();
    // The answer to the write was lost: whether it lies there decides the look after it.
    a.faulty.script(Some(Verb::Put), 1, Fault::After(Kind::Unavailable));
    assert_eq!(a.take(false).await.unwrap_err().kind(), Kind::Unavailable);
    a.take(false).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_ending_mount_waits_for_no_claim() {
    let bucket = bucket();
    let a = machine(&bucket, "a", 0);
    let keeper = a.take(false).await.unwrap();
    let claim = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.claim(Instant::now(), true).await.map(|c| matches!(c, Claim::Ours)) }
    });
    seconds(1).await;
    keeper.release().await.unwrap();
    assert_eq!(claim.await.unwrap().unwrap_err().kind(), Kind::Interrupted);
    assert_eq!(there(&bucket).await, None);
}
