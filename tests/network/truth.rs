//! What was committed, in the order in which it was, and what must hold of each commit.

use std::collections::{BTreeMap, BTreeSet};

use rollcall::digest::{Digest, Seed};
use rollcall::model::{DeviceId, Fence, Owner, Role, RowKey, Stored, Value, Version};
use rollcall::schema::TableId;
use rollcall::storage::{LeaseState, OwnerState};
use uuid::Uuid;

pub type Check<T = ()> = Result<T, String>;
pub type Id = (TableId, RowKey);
pub type Rows = BTreeMap<Id, Stored>;

pub fn must(holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(what()) }
}

/// What one transaction did.
#[derive(Default)]
pub struct Done {
    pub rows: Vec<(Id, Stored)>,
    pub state: Option<OwnerState>,
    pub digests: Vec<(TableId, Digest)>,
    /// The response that it stores: the device, the key, and the body.
    pub answer: Option<(DeviceId, String, Vec<u8>)>,
    /// Titles that lost a conflict, which it records.
    pub noted: Vec<String>,
    /// A row that it found, and the one that was expected.
    pub surprise: Option<String>,
    /// Whether it forgot old data.
    pub purged: bool,
    /// Members that it wrote or, with `None`, took out.
    pub members: Vec<(Uuid, Option<Role>)>,
}

/// One owner's data, as its commits made it.
#[derive(Clone, Default)]
pub struct Data {
    pub rows: Rows,
    pub version: Option<Version>,
    pub seed: Option<Seed>,
    /// Every title that was ever in a row, or is recorded as lost.
    pub seen: BTreeSet<String>,
    /// What each member may do, except the user for whom the owner was made.
    pub roles: BTreeMap<Uuid, Role>,
    /// How often members or their roles changed; a restore counts too.
    pub role_changes: u64,
}

#[derive(Default)]
pub struct Truth {
    pub owners: BTreeMap<Owner, Data>,
    /// Stored responses, by their key: no two requests have the same key, whoever sends them.
    ///
    /// A phone that was set up from another's backup may send the other's request, as a device of its own.
    pub answers: BTreeMap<String, BTreeMap<DeviceId, Vec<u8>>>,
    /// Responses that servers sent before they lost them in a restore: they may still be in transit.
    pub given: BTreeSet<Vec<u8>>,
    /// Rows that a device held as the server had them when that was put back: they are not to be lost.
    pub owed: BTreeSet<(Owner, Id)>,
    /// The number of each owner, which begins each of its titles.
    pub numbers: BTreeMap<Owner, usize>,
    /// Under which fences each request went out; `None` is under none.
    pub sent: BTreeMap<String, BTreeSet<Option<Fence>>>,
    /// The user who sent a request, if it is one who visits the owner.
    pub guests: BTreeMap<String, Uuid>,
    pub commits: u64,
    /// Commits that moved a version.
    pub moves: u64,
}

impl Truth {
    /// Takes a commit in.
    ///
    /// - `lease`: as the transaction held it.
    pub fn committed(&mut self, owner: Owner, done: Done, lease: &LeaseState) -> Check {
        self.commits += 1;
        if let Some(surprise) = done.surprise {
            return Err(format!("no write is lost: {surprise}"));
        }
        let mark = format!("o{}:", self.numbers[&owner]);
        let sender = done.answer.as_ref().and_then(|(_, key, _)| self.guests.get(key)).copied();
        let data = self.owners.entry(owner).or_default();
        let may_write = sender.is_none_or(|user| data.roles.get(&user) >= Some(&Role::Write));
        if let Some(state) = done.state {
            let rises = data.version.is_none_or(|before| state.version == before.next());
            must(rises, || format!("versions rise one by one: {:?}, then {}", data.version, state.version))?;
        }
        for (id, row) in done.rows {
            let before = data.rows.get(&id).map(|before| plain((&id, before)));
            if before == Some(plain((&id, &row))) {
                continue;
            }
            let result = || format!("{id:?} was {:?}, is {row:?}, under {lease:?}", data.rows.get(&id));
            must(Some(row.version) == done.state.map(|state| state.version), || {
                format!("what is written has the owner's new version: {}", result())
            })?;
            let rises = data.rows.get(&id).is_none_or(|before| row.last_update > before.last_update);
            must(rises, || format!("last_update rises: {}", result()))?;
            let kept_out = lease.holder.is_some_and(|holder| holder != row.changed_by)
                && lease.until.is_some_and(|until| lease.now < until);
            must(!kept_out, || format!("nobody writes while another holds the lock: {}", result()))?;
            must(may_write, || {
                format!("nothing that a reader or a former member sends is stored: {}", result())
            })?;
            must(!row.is_tombstone() || !self.owed.contains(&(owner, id)), || {
                format!("no sync deletes what nobody deleted: {}", result())
            })?;
            if let Some(Value::Text(title)) = row.values.as_ref().and_then(|values| values.first()) {
                must(title.starts_with(&mark), || format!("no row is another user's: {}", result()))?;
                data.seen.insert(title.clone());
            }
            data.rows.insert(id, row);
        }
        data.seen.extend(done.noted);
        data.role_changes += done.members.len() as u64;
        for (user, role) in done.members {
            match role {
                Some(role) => data.roles.insert(user, role),
                None => data.roles.remove(&user),
            };
            if role.is_none() {
                // The server forgets the responses of a former member's devices. A copy of a request that arrives after
                // the user has come back is a new one to it.
                let is_theirs = |key: &String| self.guests.get(key) == Some(&user);
                let forgotten = self.answers.extract_if(.., |key, _| is_theirs(key));
                self.given.extend(forgotten.flat_map(|(_, bodies)| bodies.into_values()));
            }
        }
        if let Some(state) = done.state {
            (data.version, data.seed) = (Some(state.version), state.seed);
            self.moves += 1;
            for (table, result) in &done.digests {
                let sum = data.digest(*table);
                must(sum == *result, || {
                    format!("digests are the sum of the rows: {sum:?}, not {result:?}, of {table:?}")
                })?;
            }
        }
        if let Some((device, key, body)) = done.answer {
            let fences = self.sent.get(&key).cloned().unwrap_or_default();
            must(fences.contains(&None) || fences.contains(&Some(lease.fence)), || {
                format!("nobody writes under an old fence: {fences:?}, now {:?}", lease.fence)
            })?;
            let before = self.answers.entry(key.clone()).or_default().insert(device, body);
            must(before.is_none(), || format!("a request has one effect: {key} of {device} has two"))?;
        }
        Ok(())
    }

    /// How often members or their roles changed.
    pub fn role_changes(&self) -> u64 {
        self.owners.values().map(|data| data.role_changes).sum()
    }

    /// Whether a server has sent this response to the request with that key.
    pub fn has_given(&self, key: &str, body: &[u8]) -> bool {
        let kept = self.answers.get(key).is_some_and(|kept| kept.values().any(|kept| kept == body));
        kept || self.given.contains(body)
    }

    /// The database is an earlier one again, in a new epoch.
    pub fn restored(&mut self, owner: Owner, copied: Option<&Data>, state: OwnerState, rows: Rows) -> Check {
        let none = Rows::new();
        let roles = copied.map(|data| data.roles.clone()).unwrap_or_default();
        let (before, copied_version) =
            (copied.map_or(&none, |data| &data.rows), copied.and_then(|data| data.version));
        let (copied, now): (Vec<_>, Vec<_>) =
            (before.iter().map(plain).collect(), rows.iter().map(plain).collect());
        must(copied == now, || format!("a restore brings back what was copied: {copied:?}, not {now:?}"))?;
        let data = self.owners.entry(owner).or_default();
        let is_known = !rows.is_empty();
        // A copy of the present data is no unexpected state.
        let is_same = copied_version == data.version && state.version == data.version.unwrap_or(Version(0));
        let rises = is_same || data.version.is_none_or(|before| state.version > before);
        must(!is_known || rises, || {
            format!("versions rise over a restore: {:?} to {}", data.version, state.version)
        })?;
        data.rows = rows;
        data.roles = roles;
        data.role_changes += 1;
        (data.version, data.seed) = (is_known.then_some(state.version), state.seed);
        let answers = std::mem::take(&mut self.answers);
        self.given.extend(answers.into_values().flat_map(BTreeMap::into_values));
        Ok(())
    }

    /// What the data of an owner must be, read back.
    pub fn check_held(&self, owner: Owner, state: OwnerState, rows: &Rows) -> Check {
        let Some(data) = self.owners.get(&owner) else { return Ok(()) };
        must(data.version.is_none_or(|version| version == state.version), || {
            format!("the version is that of the last commit: {:?}, not {}", data.version, state.version)
        })?;
        let (there, here) = (rows.iter().map(plain), data.rows.iter().map(plain));
        let lost: Vec<_> =
            here.filter(|row| !rows.get(&row.0).is_some_and(|held| plain((&row.0, held)) == *row)).collect();
        must(lost.is_empty(), || format!("no acknowledged write is lost: {lost:?}"))?;
        let known: BTreeSet<&Id> = data.rows.keys().collect();
        let more: Vec<_> = there.filter(|(id, _)| !known.contains(id)).collect();
        must(more.is_empty(), || format!("no row comes from nowhere: {more:?}"))
    }
}

impl Data {
    pub fn digest(&self, table: TableId) -> Digest {
        let mut sum = Digest::default();
        for ((of, key), row) in &self.rows {
            if *of == table && !row.is_tombstone() {
                sum.add(self.seed.map_or(0, |seed| seed.row(*key, row.last_update)));
            }
        }
        sum
    }
}

/// A row without the devices that know it: they are not part of its state.
pub fn plain((id, row): (&Id, &Stored)) -> (Id, Stored) {
    (*id, Stored { aware_devices: Vec::new(), ..row.clone() })
}
