//! A bounded map for what can be looked up again.

use std::collections::HashMap;
use std::hash::Hash;

/// Keeps what was looked up last.
///
/// This cache has two generations. A new entry goes into the younger one, and so does an older entry that is
/// looked up. When the younger generation is full, it becomes the older one, and the entries of the former
/// older one are dropped. An entry in use therefore stays, and no list of uses is needed.
#[derive(Debug)]
pub struct Cache<K, V> {
    generation_max: usize,
    younger: HashMap<K, V>,
    older: HashMap<K, V>,
}

impl<K: Eq + Hash + Copy, V> Cache<K, V> {
    /// A cache of at most `entries_max` entries; below 2 it keeps nothing.
    pub fn new(entries_max: usize) -> Self {
        Self { generation_max: entries_max / 2, younger: HashMap::new(), older: HashMap::new() }
    }

    /// Looks an entry up, which keeps it in the cache longer.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        if let Some(value) = self.older.remove(key) {
            self.insert(*key, value);
        }
        self.younger.get(key)
    }

    /// Adds or replaces an entry. Returns whether others may have been dropped for it.
    pub fn insert(&mut self, key: K, value: V) -> bool {
        if self.generation_max == 0 {
            return false;
        }
        self.older.remove(&key);
        let is_full = self.younger.len() >= self.generation_max && !self.younger.contains_key(&key);
        if is_full {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(key, value);
        is_full
    }

    /// Drops one entry.
    pub fn remove(&mut self, key: &K) {
        self.younger.remove(key);
        self.older.remove(key);
    }

    /// Drops the entries for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) {
        self.younger.retain(|_, value| keep(value));
        self.older.retain(|_, value| keep(value));
    }

    /// Drops all entries.
    pub fn clear(&mut self) {
        self.younger.clear();
        self.older.clear();
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.younger.len() + self.older.len()
    }

    /// Whether the cache has no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_in_use_stays_and_the_others_go() {
        let mut cache = Cache::new(8);
        cache.insert(0, "mine");
        let mut dropped = 0;
        for key in 1..1_000 {
            dropped += usize::from(cache.insert(key, "another's"));
            assert_eq!(cache.get(&0), Some(&"mine"), "{key}");
            assert!(cache.len() <= 8);
        }
        assert!(dropped > 100);
        assert_eq!([1, 999].map(|key| cache.get(&key).is_some()), [false, true]);
        assert!(!cache.insert(999, "new") && cache.get(&999) == Some(&"new"), "to replace drops nothing");
    }

    #[test]
    fn what_is_removed_is_in_neither_generation() {
        let mut cache = Cache::new(4);
        for key in 0..4 {
            cache.insert(key, key);
        }
        cache.remove(&0);
        cache.retain(|value| *value != 3);
        assert_eq!(
            (0..4).map(|key| cache.get(&key).copied()).collect::<Vec<_>>(),
            [None, Some(1), Some(2), None]
        );
        cache.clear();
        assert!(cache.is_empty());
        let mut none = Cache::new(1);
        assert!(!none.insert(1, 1) && none.get(&1).is_none(), "no room");
    }
}
