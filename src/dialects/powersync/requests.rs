use parking_lot::Mutex;
use rollcall_core::cache::Cache;
use sha2::{Digest as _, Sha256};

use crate::model::Owner;

/// What clients wait for: a checkpoint that has what they uploaded.
///
/// It is in memory alone. A client whose request is lost sends it again with its next stream.
pub(crate) struct Requests(Mutex<Cache<[u8; 32], Noted>>);

/// What is noted of one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    /// The highest number that it waits for.
    pub number: u64,
    /// How many requests it has sent: where this rises, a checkpoint is due.
    pub count: u64,
}

impl Requests {
    /// Keeps at least the last `clients_max` clients.
    pub fn new(clients_max: usize) -> Self {
        Self(Mutex::new(Cache::new(clients_max.max(1).saturating_mul(2))))
    }

    /// Notes a request; returns the number that the client is to wait for.
    pub fn note(&self, owner: Owner, client: Option<&str>, number: Option<u64>) -> u64 {
        let (key, mut clients) = (key(owner, client), self.0.lock());
        let mut noted = clients.get(&key).copied().unwrap_or_default();
        noted.count += 1;
        noted.number = noted.number.max(number.unwrap_or(0));
        clients.insert(key, noted);
        noted.number
    }

    /// What is noted of a client.
    pub fn of(&self, owner: Owner, client: Option<&str>) -> Noted {
        self.0.lock().get(&key(owner, client)).copied().unwrap_or_default()
    }
}

/// The client's id may be long; its hash is not.
fn key(owner: Owner, client: Option<&str>) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(owner.0.as_bytes());
    hash.update(client.unwrap_or_default());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_of_one_client_of_one_owner() {
        let (anna, ben) = (Owner(uuid::Uuid::from_u128(1)), Owner(uuid::Uuid::from_u128(2)));
        let requests = Requests::new(2);
        assert_eq!(requests.note(anna, Some("phone"), Some(7)), 7);
        assert_eq!(requests.note(anna, Some("phone"), Some(5)), 7, "the highest counts");
        assert_eq!(requests.note(anna, Some("phone"), None), 7);
        assert_eq!(requests.of(anna, Some("phone")), Noted { number: 7, count: 3 });
        for (owner, client) in [(ben, Some("phone")), (anna, Some("tablet")), (anna, None)] {
            assert_eq!(requests.of(owner, client), Noted::default());
        }
    }
}
