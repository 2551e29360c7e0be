//! Small worlds for the tests of this module: a volume in memory, pins on a simulated disk.

use super::{ConfigPins, InitParams, Made, Secret, init};
use crate::crypto::kdf::Argon2Cost;
use crate::disk::SimDisk;
use crate::env::Env;
use crate::format::names::CONFIG;
use crate::store::memory::MemoryStore;
use crate::store::{Cond, Span, Store};
use bytes::Bytes;
use std::sync::Arc;

/// The passphrase of every volume here.
pub const PASSPHRASE: &str = "correct horse";

/// A secret as a person types it.
pub fn pass(text: &str) -> Secret {
    Secret::Passphrase(text.as_bytes().to_vec().into())
}

/// The cheapest volume that is allowed.
pub fn params() -> InitParams {
    InitParams { kdf: Argon2Cost::MIN, name: "scans".to_owned(), ..InitParams::default() }
}

/// A store with a volume in it.
pub async fn volume() -> (MemoryStore, Made) {
    let store = MemoryStore::new();
    let made = init(&store, params(), PASSPHRASE.as_bytes().to_vec().into(), None, &Env::real()).await.unwrap();
    (store, made)
}

/// Pins on a new disk.
pub fn pins() -> (Arc<SimDisk>, ConfigPins) {
    let disk = Arc::new(SimDisk::new(1));
    (disk.clone(), ConfigPins::new(disk))
}

/// The config that a store holds.
pub async fn config_of(store: &dyn Store) -> Bytes {
    store.get(CONFIG, Span::Whole { max: 1 << 20 }, None).await.unwrap().bytes
}

/// Puts other bytes in the config's place.
pub async fn put_config(store: &dyn Store, bytes: Vec<u8>) {
    store.put(CONFIG, vec![Bytes::from(bytes)], Cond::Any).await.unwrap();
}
