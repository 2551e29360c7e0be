//! A bucket as its operator sees it: objects by key, to look at, change, put back and delete.

use super::world::World;
use smpfs::store::{Cond, Options, Span, Store, StoreSpec, open};
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the head of this file.
pub struct Bucket {
    store: Arc<dyn Store>,
    rt: tokio::runtime::Runtime,
}

impl Bucket {
    pub fn open(world: &World) -> Bucket {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut spec = StoreSpec::parse(&world.store).unwrap();
        if let (StoreSpec::S3(s3), Some(_)) = (&mut spec, &world.endpoint) {
            s3.endpoint = world.endpoint.clone();
        }
        let store = rt.block_on(open(&spec, &Options::default())).unwrap().store;
        Bucket { store, rt }
    }

    /// Keys of all objects, in order.
    pub fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.rt.block_on(self.store.list("", after.as_deref(), 1000)).unwrap();
            keys.extend(page.items.into_iter().map(|i| i.key));
            after = page.next;
            if after.is_none() {
                keys.sort();
                return keys;
            }
        }
    }

    /// Keys of sealed files.
    pub fn files(&self) -> Vec<String> {
        self.keys().into_iter().filter(|k| k.starts_with(".smpfs/o/") || !k.starts_with(".smpfs/")).collect()
    }

    /// Keys of directory indexes.
    pub fn indexes(&self) -> Vec<String> {
        self.keys().into_iter().filter(|k| k.starts_with(".smpfs/d/")).collect()
    }

    pub fn get(&self, key: &str) -> Vec<u8> {
        self.rt.block_on(self.store.get(key, Span::Whole { max: 1 << 31 }, None)).unwrap().bytes.to_vec()
    }

    pub fn put(&self, key: &str, bytes: &[u8]) {
        self.rt.block_on(self.store.put(key, vec![bytes.to_vec().into()], Cond::Any)).unwrap();
    }

    pub fn delete(&self, key: &str) {
        self.rt.block_on(self.store.delete(key)).unwrap();
    }

    /// Every object with its bytes.
    pub fn all(&self) -> BTreeMap<String, Vec<u8>> {
        self.keys().into_iter().map(|k| (k.clone(), self.get(&k))).collect()
    }

    /// Uploads that somebody began and did not end.
    pub fn unfinished(&self) -> usize {
        self.rt.block_on(self.store.uploads("")).unwrap().len()
    }

    /// Deletes everything.
    pub fn empty(&self) {
        for key in self.keys() {
            self.delete(&key);
        }
    }
}
