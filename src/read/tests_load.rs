//! Many readers, little memory, long files: budgets and numbers of requests.

use super::*;

const M: u64 = 1 << 20;

#[test]
fn many_parallel_readers_never_exceed_the_budget() {
    let budget = 32 * M;
    runtime().block_on(async {
        let w = World::new(small(), ReadOptions { budget, ..options() });
        let mut files = Vec::new();
        for seed in 0..3 {
            files.push(w.open(content(12 << 20, 100 + seed)).await);
        }
        let mut tasks = Vec::new();
        for task in 0..24u64 {
            let (built, object) = files[(task / 3 % 3) as usize].clone();
            let handle = Handle::new(&w.reader, object);
            tasks.push(tokio::spawn(async move {
                let size = built.plain.len() as u64;
                let mut at = task * 977_777 % size;
                for step in 0..10u64 {
                    let len = if task % 3 == 0 { M as u32 } else { 1 + (task * 7919 + step * 104_729) as u32 % 300_000 };
                    let got = handle.read(at, len).await.unwrap();
                    assert_eq!(got[..], built.plain[at as usize..at as usize + got.len()]);
                    // A third reads on, the others jump.
                    at = if task % 3 == 0 { (at + got.len() as u64) % size } else { (at * 31 + 12_345_678) % size };
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let b = w.reader.budget();
        assert!(b.peak() <= budget, "{}", b.peak());
        assert!(b.live_peak() <= budget, "{}", b.live_peak());
        assert!(b.live_peak() > budget / 2, "the budget was put to use: {}", b.live_peak());
        settle(&w.reader).await;
        w.reader.clear();
        while b.used() > 0 {
            w.reader.clear();
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn the_largest_chunks_fit_into_the_least_budget() {
    runtime().block_on(async {
        let g = Geometry::new(20, 4).unwrap();
        for verify_full in [false, true] {
            let w = World::new(g, ReadOptions { budget: budget::MIN_BUDGET, verify_full, ..options() });
            let (built, object) = w.open(content(24 << 20, 1)).await;
            let tasks: Vec<_> = (0..6u64)
                .map(|i| {
                    let (reader, object, built) = (w.reader.clone(), object.clone(), built.clone());
                    tokio::spawn(async move {
                        for j in 0..5u64 {
                            let at = ((i * 5 + j * 7) % 23 * M + i * 1000) as usize;
                            let got = reader.read(&object, at as u64, M as u32).await.unwrap();
                            assert_eq!(got, built.plain[at..at + (1 << 20)]);
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            assert!(w.reader.budget().live_peak() <= budget::MIN_BUDGET);
        }
    });
}

#[tokio::test]
async fn a_thousand_small_sequential_reads_cost_few_requests() {
    let w = World::new(Geometry::DEFAULT, ReadOptions { budget: 256 * M, ..options() });
    let (built, object) = w.big().await;
    let opened = w.gets();
    assert_eq!(opened, 2);
    let handle = Handle::new(&w.reader, object);
    for i in 0..1000usize {
        assert_eq!(handle.read(i as u64 * 4096, 4096).await.unwrap(), built.plain[i * 4096..(i + 1) * 4096]);
    }
    settle(&w.reader).await;
    let gets = w.gets() - opened;
    assert!(gets <= 16, "{gets} requests for 4 MiB in 4 KiB steps");
}

#[tokio::test]
async fn a_sequential_pass_fetches_every_byte_once_in_long_requests() {
    let w = World::new(Geometry::DEFAULT, ReadOptions { budget: 256 * M, ..options() });
    let (built, object) = w.big().await;
    let opened = w.gets();
    let handle = Handle::new(&w.reader, object);
    let step = 128 << 10;
    for at in (0..64usize << 20).step_by(step) {
        // The kernel asks from two threads: every pair the other way round.
        let at = at ^ step;
        assert_eq!(handle.read(at as u64, step as u32).await.unwrap(), built.plain[at..at + step]);
    }
    settle(&w.reader).await;
    let gets = w.gets() - opened;
    assert!(gets <= 40, "{gets} requests for 64 MiB");
    let misses = w.reader.stats().misses;
    drop(handle);
    assert!(misses < 2000, "{misses}");
}

#[tokio::test]
async fn random_reads_fetch_what_is_asked_and_no_more() {
    let w = World::new(Geometry::DEFAULT, ReadOptions { budget: 256 * M, ..options() });
    let (built, object) = w.big().await;
    let opened = w.gets();
    let handle = Handle::new(&w.reader, object);
    for i in 1..60u64 {
        let at = (i * 37 % 64 * M + 4096 * i) as usize;
        assert_eq!(handle.read(at as u64, 4096).await.unwrap(), built.plain[at..at + 4096]);
    }
    settle(&w.reader).await;
    let held = w.reader.budget().used();
    assert!(w.gets() - opened <= 60);
    assert!(held <= 70 * (66 << 10), "{held} bytes held after 59 reads of a chunk each");
}

#[tokio::test]
async fn closing_a_handle_stops_what_was_fetched_ahead() {
    let w = World::new(Geometry::DEFAULT, ReadOptions { budget: 256 * M, ..options() });
    let (_, object) = w.big().await;
    let handle = Handle::new(&w.reader, object.clone());
    // Bring the first chunks in; from the next request on, the store hangs.
    handle.read(0, 65_536).await.unwrap();
    w.faulty.script_on(Some(Verb::Get), "", 1, u32::MAX, Fault::Stall);
    handle.read(65_536, 65_536).await.unwrap();
    while w.reader.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    drop(handle);
    settle(&w.reader).await;
    w.faulty.clear();
    assert_eq!(w.reader.read(&object, 131_072, 10).await.unwrap().len(), 10);
}

#[tokio::test]
async fn read_now_fetches_ahead_too() {
    let w = World::new(small(), ReadOptions { budget: 64 * M, ..options() });
    let (built, object) = w.open(content(8 << 20, 6)).await;
    let handle = Handle::new(&w.reader, object);
    handle.read(0, 1 << 18).await.unwrap();
    let mut waited = 0;
    for at in (0..8usize << 20).step_by(1 << 15) {
        let now = match handle.read_now(at as u64, 1 << 15) {
            Some(now) => now.unwrap(),
            None => {
                waited += 1;
                settle(&w.reader).await;
                handle.read(at as u64, 1 << 15).await.unwrap()
            }
        };
        assert_eq!(now, built.plain[at..at + (1 << 15)]);
        if at % (1 << 20) == 0 {
            tokio::task::yield_now().await;
            settle(&w.reader).await;
        }
    }
    assert!(waited < 40, "{waited} of 256 reads had to wait");
}
