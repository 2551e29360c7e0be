//! Finds out at mount what a store truly does, with real requests: some servers answer 200 to a conditional write and ignore
//! the condition.
//!
//! Everything happens on scratch keys below `.smpfs/probe/`, which are deleted afterwards, whatever comes out. Each question is
//! asked in a way that a server which ignores it answers wrongly; conditions are asked under a race as well. Questions are
//! independent of each other and asked at the same time: a probe costs the time of about six requests one after the other.

use super::*;
use crate::env::Rng;
use futures_util::future::join_all;

/// Keys of probes begin with this.
pub const SCRATCH: &str = ".smpfs/probe/";
/// What follows when completions are not conditional; what the server did instead helps nobody.
const COMPLETION: &str = "conditional completion of uploads does not work: two machines that finish the same large file in the same \
                          moment are not told apart; smpfs looks at the object first";
/// Writers that race for one key.
const RACERS: u8 = 6;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What the store does.
    pub caps: Capability,
    /// One sentence for each thing that it claims and does not do.
    pub notes: Vec<String>,
}

/// The answer to one question: yes, or why not.
type Answer = Result<std::result::Result<(), String>>;

/// Asks the store what it can do. Errors are those of a store that cannot be reached or does not let us in at all.
pub async fn probe(store: &dyn Store, rng: &dyn Rng) -> Result<Found> {
    let mut id = [0; 12];
    rng.fill(&mut id);
    let base = format!("{SCRATCH}{}", data_encoding::HEXLOWER.encode(&id));
    let mut found = Found { caps: store.caps(), notes: Vec::new() };
    if !found.caps.write {
        found.notes.push("the store is read-only".into());
        return Ok(found);
    }
    let done = ask_all(store, &base, &mut found).await;
    let left = clean(store, &base).await;
    match done {
        Err(e) if matches!(e.kind(), Kind::Denied | Kind::ReadOnly | Kind::NotPermitted) => {
            found.caps = found.caps.read_only();
            found.notes.push(format!("these credentials may only read ({e})"));
            return Ok(found);
        }
        other => other?,
    }
    if let Err(e) = left {
        found.notes.push(format!("the probe could not remove its scratch objects ({e})"));
    }
    Ok(found)
}

/// Deletes what a probe may have left.
async fn clean(store: &dyn Store, base: &str) -> Result<()> {
    if store.caps().multipart {
        for (key, id) in store.uploads(base).await? {
            store.upload_abort(&key, &id).await?;
        }
    }
    for item in store.list(base, None, 100).await?.items {
        store.delete(&item.key).await?;
    }
    Ok(())
}

fn bytes(text: String) -> Vec<Bytes> {
    vec![Bytes::from(text)]
}

async fn ask_all(store: &dyn Store, base: &str, found: &mut Found) -> Result<()> {
    // The first write tells whether we may write at all.
    let first = store.put(&format!("{base}/write"), bytes("w".into()), Cond::Any).await?;
    // Some servers answer the start of an upload with something that is none.
    if let Err(why) = asked(found.caps.multipart, starts(store, format!("{base}/upload"))).await? {
        found.notes.push(format!("uploads in parts do not work: {why}"));
        found.caps = Capability { multipart: false, complete_if: false, part_copy: false, ..found.caps };
    }
    let caps = found.caps;
    let (absent, swap, complete, copy, part_copy) = tokio::join!(
        asked(caps.put_if_absent, if_absent(store, format!("{base}/absent"))),
        asked(caps.put_if_match, if_match(store, format!("{base}/match"))),
        asked(caps.multipart && caps.complete_if, complete_if(store, format!("{base}/complete"))),
        asked(caps.copy, copies(store, format!("{base}/write"), &first.etag, format!("{base}/copied"))),
        asked(caps.multipart && caps.part_copy, part_copies(store, format!("{base}/source"), format!("{base}/part"))),
    );
    let mut note = |claimed: bool, what: &str, answer: Answer| -> Result<bool> {
        match answer? {
            Ok(()) => Ok(claimed),
            Err(why) => {
                tracing::debug!("{what}: {why}");
                found.notes.push(if what == COMPLETION { what.to_owned() } else { format!("{what}: {why}") });
                Ok(false)
            }
        }
    };
    let put_if_absent = note(caps.put_if_absent, "conditional creation does not work", absent)?;
    let put_if_match = note(caps.put_if_match, "compare-and-swap does not work", swap)?;
    let complete_if = note(caps.complete_if, COMPLETION, complete)?;
    let copy = note(caps.copy, "copying inside the store does not work", copy)?;
    let part_copy = note(caps.part_copy, "copying parts inside the store does not work", part_copy)?;
    found.caps = Capability { put_if_absent, put_if_match, complete_if, copy, part_copy, ..caps };
    Ok(())
}

async fn starts(store: &dyn Store, key: String) -> Answer {
    let id = store.upload_start(&key).await?;
    store.upload_abort(&key, &id).await?;
    Ok(Ok(()))
}

/// Asks only what is claimed. A refusal by the server is an answer; only an unreachable or forbidding store is an error.
async fn asked(claimed: bool, question: impl Future<Output = Answer>) -> Answer {
    if !claimed {
        return Ok(Ok(()));
    }
    match question.await {
        Err(e) if matches!(e.kind(), Kind::Unsupported | Kind::Invalid | Kind::NotFound | Kind::Corrupt | Kind::Range) => {
            Ok(Err(format!("the server refused it ({e})")))
        }
        other => other,
    }
}

/// The outcome of a request whose condition does not hold.
fn must_fail<T>(result: Result<T>, ignored: &str) -> Answer {
    match result {
        Err(e) if e.kind() == Kind::Stale => Ok(Ok(())),
        Err(e) => Err(e),
        Ok(_) => Ok(Err(ignored.to_owned())),
    }
}

/// `?` for the inner half of an [`Answer`].
macro_rules! yes {
    ($answer:expr) => {
        if let Err(why) = $answer? {
            return Ok(Err(why));
        }
    };
}

/// Writes the same key from several sides at once.
async fn race(store: &dyn Store, key: &str, cond: Cond) -> Answer {
    let racers = (0..RACERS).map(|n| store.put(key, bytes(format!("racer {n}")), cond.clone()));
    one_winner(join_all(racers).await)
}

/// The outcome of a race: exactly one may have won.
fn one_winner(results: Vec<Result<Meta>>) -> Answer {
    let (mut winners, mut unknown) = (0, None);
    for result in results {
        match result {
            Ok(_) => winners += 1,
            Err(e) if e.kind() == Kind::Stale => {}
            // S3 tells some of those who lose to try again, and their second try cannot tell what became of the first.
            Err(e) if temporary(e.kind()) => unknown = Some(e),
            Err(e) => return Err(e),
        }
    }
    match (winners, unknown) {
        (1, _) => Ok(Ok(())),
        (0, Some(e)) => Err(e),
        (n, _) => Ok(Err(format!("of {RACERS} writers at once {n} were told that they had won"))),
    }
}

async fn if_absent(store: &dyn Store, key: String) -> Answer {
    let raced = format!("{key}-race");
    let once = async {
        store.put(&key, bytes("first".into()), Cond::Absent).await?;
        must_fail(
            store.put(&key, bytes("second".into()), Cond::Absent).await,
            "the server overwrote an object it should have kept",
        )
    };
    let (once, race) = tokio::join!(once, race(store, &raced, Cond::Absent));
    yes!(once);
    race
}

async fn if_match(store: &dyn Store, key: String) -> Answer {
    let old = store.put(&key, bytes("first".into()), Cond::Any).await?;
    let new = store.put(&key, bytes("second".into()), Cond::Match(old.etag.clone())).await?;
    let late = store.put(&key, bytes("late".into()), Cond::Match(old.etag)).await;
    yes!(must_fail(late, "the server let a writer replace a version that it had not seen"));
    race(store, &key, Cond::Match(new.etag)).await
}

/// An upload of one small part, completed under `cond`.
async fn upload(store: &dyn Store, key: &str, text: &str, cond: Cond) -> Result<Meta> {
    let id = store.upload_start(key).await?;
    let part = store.upload_part(key, &id, PartAt { number: 1, offset: 0 }, bytes(text.to_owned())).await?;
    let done = store.upload_complete(key, &id, &[part], cond).await;
    if done.is_err() {
        // Some servers drop the upload themselves.
        let _ = store.upload_abort(key, &id).await;
    }
    done
}

async fn complete_if(store: &dyn Store, key: String) -> Answer {
    let ignored = "the server ignored the condition";
    let old = store.put(&key, bytes("first".into()), Cond::Any).await?;
    yes!(must_fail(upload(store, &key, "absent", Cond::Absent).await, ignored));
    let new = upload(store, &key, "second", Cond::Match(old.etag.clone())).await?;
    yes!(must_fail(upload(store, &key, "late", Cond::Match(old.etag)).await, ignored));
    if store.head(&key).await?.etag != new.etag {
        return Ok(Err("the tag of a completed upload is not the object's".into()));
    }
    race_to_complete(store, &format!("{key}-race")).await
}

/// Completes several uploads of one key at once, all parts being there. SeaweedFS 4.48 lets more than one win.
async fn race_to_complete(store: &dyn Store, key: &str) -> Answer {
    let ready = join_all((0..RACERS).map(|n| async move {
        let id = store.upload_start(key).await?;
        let at = PartAt { number: 1, offset: 0 };
        let part = store.upload_part(key, &id, at, bytes(format!("racer {n}"))).await?;
        Ok((id, [part]))
    }));
    let ready = ready.await.into_iter().collect::<Result<Vec<_>>>()?;
    let racers = ready.iter().map(|(id, parts)| store.upload_complete(key, id, parts, Cond::Absent));
    let results = join_all(racers).await;
    for ((id, _), _) in ready.iter().zip(&results).filter(|(_, r)| r.is_err()) {
        // Some servers drop the upload themselves.
        let _ = store.upload_abort(key, id).await;
    }
    one_winner(results)
}

async fn content(store: &dyn Store, key: &str) -> Result<Bytes> {
    Ok(store.get(key, Span::Whole { max: 1024 }, None).await?.bytes)
}

async fn copies(store: &dyn Store, from: String, tag: &ETag, to: String) -> Answer {
    store.copy(&from, tag, &to, Cond::Any).await?;
    if content(store, &to).await? != content(store, &from).await? {
        return Ok(Err("the copy is not the same as its source".into()));
    }
    let old = ETag("0".repeat(tag.0.len()));
    must_fail(store.copy(&from, &old, &to, Cond::Any).await, "the server ignored the version of the source")
}

async fn part_copies(store: &dyn Store, from: String, to: String) -> Answer {
    let source = store.put(&from, bytes("0123456789".into()), Cond::Any).await?;
    let id = store.upload_start(&to).await?;
    let at = PartAt { number: 1, offset: 0 };
    let old = ETag("0".repeat(source.etag.0.len()));
    let wrong = store.upload_part_copy(&to, &id, at, &from, &old, 2..5).await;
    let answer = match must_fail(wrong, "the server ignored the version of the source") {
        Ok(Ok(())) => copied_range(store, &from, &source.etag, &to, &id, at).await,
        other => other,
    };
    if !matches!(answer, Ok(Ok(()))) {
        let _ = store.upload_abort(&to, &id).await;
    }
    answer
}

async fn copied_range(store: &dyn Store, from: &str, tag: &ETag, to: &str, id: &UploadId, at: PartAt) -> Answer {
    let part = store.upload_part_copy(to, id, at, from, tag, 2..5).await?;
    store.upload_complete(to, id, &[part], Cond::Any).await?;
    match &content(store, to).await?[..] == b"234" {
        true => Ok(Ok(())),
        false => Ok(Err("the server copied another range than was asked for".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;
    use crate::error::Error;
    use crate::store::layers::{Around, Call, Fault, Faulty, Op, Reply, Verb, Wrap};
    use crate::store::memory::{CAPS, MemoryStore};
    use std::sync::Arc;

    #[test]
    fn of_racers_some_of_whom_were_told_to_try_again_one_has_won() {
        let won = || Ok(Meta { len: 1, etag: ETag("t".into()) });
        let lost = |kind| fail::<Meta>(kind, "x");
        let race = |results| one_winner(results);
        assert_eq!(race(vec![won(), lost(Kind::Unavailable), lost(Kind::Stale)]).unwrap(), Ok(()));
        assert!(race(vec![won(), lost(Kind::Unavailable), won()]).unwrap().is_err());
        assert!(race(vec![lost(Kind::Stale), lost(Kind::Stale)]).unwrap().is_err());
        // Nobody answers: that is no property of the store.
        assert_eq!(race(vec![lost(Kind::Stale), lost(Kind::Unavailable)]).unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(race(vec![won(), lost(Kind::Denied)]).unwrap_err().kind(), Kind::Denied);
    }

    async fn ask(store: &dyn Store) -> Result<Found> {
        probe(store, &*Env::real().rng).await
    }

    async fn empty(store: &dyn Store) -> bool {
        store.list("", None, 10).await.unwrap().items.is_empty() && store.uploads("").await.unwrap().is_empty()
    }

    /// Forgets conditions and answers 200.
    struct Liar {
        inner: MemoryStore,
        puts: bool,
        completes: bool,
        sources: bool,
    }

    #[async_trait]
    impl Store for Liar {
        fn url(&self) -> String {
            self.inner.url()
        }
        fn caps(&self) -> Capability {
            self.inner.caps()
        }
        async fn get(&self, key: &Key, span: Span, only: Option<&ETag>) -> Result<Got> {
            self.inner.get(key, span, only).await
        }
        async fn head(&self, key: &Key) -> Result<Meta> {
            self.inner.head(key).await
        }
        async fn put(&self, key: &Key, body: Vec<Bytes>, cond: Cond) -> Result<Meta> {
            self.inner.put(key, body, if self.puts { Cond::Any } else { cond }).await
        }
        async fn delete(&self, key: &Key) -> Result<()> {
            self.inner.delete(key).await
        }
        async fn copy(&self, from: &Key, only: &ETag, to: &Key, cond: Cond) -> Result<Meta> {
            let now = self.inner.head(from).await?.etag;
            self.inner.copy(from, if self.sources { &now } else { only }, to, cond).await
        }
        async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page> {
            self.inner.list(prefix, after, limit).await
        }
        async fn upload_start(&self, key: &Key) -> Result<UploadId> {
            self.inner.upload_start(key).await
        }
        async fn upload_part(&self, key: &Key, id: &UploadId, at: PartAt, body: Vec<Bytes>) -> Result<Part> {
            self.inner.upload_part(key, id, at, body).await
        }
        async fn upload_part_copy(
            &self,
            key: &Key,
            id: &UploadId,
            at: PartAt,
            from: &Key,
            only: &ETag,
            range: Range<u64>,
        ) -> Result<Part> {
            let now = self.inner.head(from).await?.etag;
            self.inner.upload_part_copy(key, id, at, from, if self.sources { &now } else { only }, range).await
        }
        async fn upload_complete(&self, key: &Key, id: &UploadId, parts: &[Part], cond: Cond) -> Result<Meta> {
            self.inner.upload_complete(key, id, parts, if self.completes { Cond::Any } else { cond }).await
        }
        async fn upload_abort(&self, key: &Key, id: &UploadId) -> Result<()> {
            self.inner.upload_abort(key, id).await
        }
        async fn uploads(&self, prefix: &str) -> Result<Vec<(String, UploadId)>> {
            self.inner.uploads(prefix).await
        }
    }

    fn liar() -> Liar {
        Liar { inner: MemoryStore::new(), puts: false, completes: false, sources: false }
    }

    /// Checks a condition, then waits, then writes: right one at a time, wrong under a race.
    struct Racy;

    impl Around for Racy {
        async fn around<'a, T: Reply>(&'a self, inner: &'a dyn Store, op: Op<'a>, call: Call<'a, T>) -> Result<T> {
            let (Verb::Put, Some(cond), Some(body)) = (op.verb, op.cond, op.body) else { return call().await };
            let there = inner.head(op.key).await.ok().map(|m| m.etag);
            let holds = match cond {
                Cond::Any => true,
                Cond::Absent => there.is_none(),
                Cond::Match(tag) => there.as_ref() == Some(tag),
            };
            tokio::task::yield_now().await;
            if !holds {
                return fail(Kind::Stale, "late");
            }
            let meta = inner.put(op.key, body.to_vec(), Cond::Any).await?;
            T::from_meta(&meta).ok_or_else(|| Error::new(Kind::Bug, "a put answers with a meta"))
        }
    }

    #[tokio::test]
    async fn an_honest_store_keeps_its_caps_and_is_left_clean() {
        let store = MemoryStore::new();
        assert_eq!(ask(&store).await.unwrap(), Found { caps: CAPS, notes: vec![] });
        assert!(empty(&store).await);
    }

    #[tokio::test]
    async fn a_store_that_ignores_conditions_is_caught() {
        let store = Liar { puts: true, ..liar() };
        let found = ask(&store).await.unwrap();
        assert_eq!(found.caps, Capability { put_if_absent: false, put_if_match: false, ..CAPS });
        assert_eq!(found.notes.len(), 2, "{:?}", found.notes);
        assert!(empty(&store).await);

        let store = Liar { completes: true, ..liar() };
        assert_eq!(ask(&store).await.unwrap().caps, Capability { complete_if: false, ..CAPS });
        assert!(empty(&store).await);

        let store = Liar { sources: true, ..liar() };
        assert_eq!(ask(&store).await.unwrap().caps, Capability { copy: false, part_copy: false, ..CAPS });
        assert!(empty(&store).await);
    }

    #[tokio::test]
    async fn a_store_that_is_honest_only_without_a_race_is_caught() {
        let store = Wrap::new(Arc::new(MemoryStore::new()), Racy);
        let found = ask(&store).await.unwrap();
        assert_eq!(found.caps, Capability { put_if_absent: false, put_if_match: false, ..CAPS }, "{:?}", found.notes);
    }

    fn broken(verb: Verb, kind: Kind) -> Wrap<Faulty> {
        let faulty = Faulty::new(1);
        faulty.script(Some(verb), u32::MAX, Fault::Before(kind));
        Wrap::new(Arc::new(MemoryStore::new()), faulty)
    }

    #[tokio::test]
    async fn read_only_credentials_take_every_writing_capability_away() {
        let found = ask(&broken(Verb::Put, Kind::Denied)).await.unwrap();
        assert_eq!(found.caps, CAPS.read_only());
        assert!(found.notes[0].contains("only read"), "{:?}", found.notes);
    }

    #[tokio::test]
    async fn what_the_server_does_not_know_is_off_and_an_unreachable_store_is_an_error() {
        let found = ask(&broken(Verb::UploadPartCopy, Kind::Unsupported)).await.unwrap();
        assert_eq!(found.caps, Capability { part_copy: false, ..CAPS });
        assert_eq!(ask(&broken(Verb::Put, Kind::Unavailable)).await.unwrap_err().kind(), Kind::Unavailable);
    }
}
