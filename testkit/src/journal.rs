//! What devices know of one owner's data: every write they sent, and what a server may return afterwards.
//!
//! A device writes under the lock, so its write gets the version after the one it fetched, or none at all. So
//! every version is claimed by few writes and used by one, and it determines for every row which write it
//! must show.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

/// One row: its table and its key.
pub type RowId = (&'static str, Uuid);

/// A disagreement between the journal and the server, for people.
pub type Wrong = String;

/// What a write makes of a row. The token is in its columns; no two writes share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Live(String),
    Deleted,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its response never arrived: it is committed completely or not at all.
    Unknown,
    /// Its response arrived: it is committed, or a later one is.
    Acknowledged,
    /// Its response never arrived, but the write was seen.
    Found,
    /// It is known to have changed nothing: refused, or its version is another's.
    Void,
}

/// One request that changes rows.
#[derive(Debug)]
pub struct Sent {
    pub device: usize,
    /// The version that it gets if it is applied.
    pub version: u64,
    pub rows: BTreeMap<RowId, Effect>,
    pub fate: Fate,
    /// The `last_update` of each row, once the write was acknowledged.
    pub stamps: HashMap<RowId, String>,
}

impl Sent {
    fn holds(&self) -> bool {
        matches!(self.fate, Fate::Acknowledged | Fate::Found)
    }
}

/// What a server shows of one row.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// The manifest does not contain it.
    Absent,
    /// The manifest contains it with this `last_update`.
    Listed(&'a str),
    /// The whole row: its token and its `last_update`.
    Whole(&'a str, &'a str),
}

/// All writes of one owner's devices, and the fences they worked under.
#[derive(Default)]
pub struct Journal {
    sent: Vec<Sent>,
    by_row: HashMap<RowId, Vec<usize>>,
    by_version: HashMap<u64, Vec<usize>>,
    /// The highest version that a device received.
    top: u64,
    /// Lowest and highest fence of each life of the server.
    fences: BTreeMap<u64, (u64, u64)>,
    /// Which row refers to which.
    pairs: HashMap<RowId, RowId>,
    /// Rows of acknowledged deletions, the latest last.
    deleted: Vec<RowId>,
}

impl Journal {
    pub fn top(&self) -> u64 {
        self.top
    }

    pub fn sent(&self) -> &[Sent] {
        &self.sent
    }

    pub fn rows(&self) -> Vec<RowId> {
        self.by_row.keys().copied().collect()
    }

    pub fn knows(&self, row: RowId) -> bool {
        self.by_row.contains_key(&row)
    }

    pub fn pair(&mut self, parent: RowId, child: RowId) {
        self.pairs.insert(parent, child);
    }

    /// The row that refers to a row, if there ever was one.
    pub fn paired(&self, parent: RowId) -> Option<RowId> {
        self.pairs.get(&parent).copied()
    }

    /// Some rows that are certainly deleted, and when they were.
    pub fn deleted_lately(&self, table: &str) -> Vec<(RowId, String)> {
        let lately = self.deleted.iter().rev().take(20).filter(|row| row.0 == table);
        let certain = lately.filter_map(|row| match self.known(*row)? {
            (Effect::Deleted, Some(stamp)) => Some((*row, stamp.clone())),
            _ => None,
        });
        certain.collect()
    }

    pub fn count(&self, fate: Fate) -> usize {
        self.sent.iter().filter(|sent| sent.fate == fate).count()
    }

    /// Records a write before it is sent, since its response may be lost.
    pub fn send(&mut self, device: usize, version: u64, rows: BTreeMap<RowId, Effect>) -> usize {
        let id = self.sent.len();
        for row in rows.keys() {
            self.by_row.entry(*row).or_default().push(id);
        }
        self.by_version.entry(version).or_default().push(id);
        let stamps = HashMap::new();
        self.sent.push(Sent { device, version, rows, fate: Fate::Unknown, stamps });
        id
    }

    /// Records the outcome of a write.
    pub fn settle(&mut self, id: usize, fate: Fate) -> Result<(), Wrong> {
        let version = self.sent[id].version;
        match (self.sent[id].fate, fate) {
            (was, Fate::Found) if was != Fate::Unknown => return Ok(()),
            (Fate::Found, Fate::Void) => return Err(format!("{:?} is void and was seen", self.sent[id])),
            _ => self.sent[id].fate = fate,
        }
        if self.sent[id].holds() {
            for other in self.by_version[&version].clone() {
                if other != id && self.sent[other].holds() {
                    return Err(format!(
                        "two writes have version {version}: {:?} {:?}",
                        self.sent[id], self.sent[other]
                    ));
                }
                if other != id {
                    self.sent[other].fate = Fate::Void;
                }
            }
        }
        Ok(())
    }

    /// Records a response: the write is committed from now on.
    pub fn acknowledge(&mut self, id: usize, stamps: HashMap<RowId, String>) -> Result<(), Wrong> {
        self.sent[id].stamps = stamps;
        let deleted = self.sent[id].rows.iter().filter(|(_, effect)| **effect == Effect::Deleted);
        self.deleted.extend(deleted.map(|(row, _)| *row));
        self.settle(id, Fate::Acknowledged)?;
        self.show_version(self.sent[id].version);
        Ok(())
    }

    pub fn show_version(&mut self, version: u64) {
        self.top = self.top.max(version);
    }

    /// Whether this write alone can have made its version.
    pub fn is_sole_claimant(&self, id: usize) -> bool {
        let claims = &self.by_version[&self.sent[id].version];
        claims.iter().all(|other| *other == id || self.sent[*other].fate == Fate::Void)
    }

    /// Records a fence; those of a later run of the server must be higher.
    pub fn show_fence(&mut self, life: u64, fence: u64) -> Result<(), Wrong> {
        let range = self.fences.entry(life).or_insert((fence, fence));
        *range = (range.0.min(fence), range.1.max(fence));
        let before = self.fences.range(..life).next_back();
        let after = self.fences.range(life + 1..).next();
        if before.is_some_and(|(_, range)| range.1 >= fence)
            || after.is_some_and(|(_, range)| range.0 <= fence)
        {
            return Err(format!("fence {fence} of life {life} repeats: {before:?}, {after:?}"));
        }
        Ok(())
    }

    /// The last state of the row that is certain, as of a version: its write, if there is one.
    fn floor(&self, row: RowId, version: u64) -> Option<&Sent> {
        let writes = self.by_row.get(&row)?.iter().map(|id| &self.sent[*id]);
        writes.filter(|sent| sent.version <= version && sent.holds()).max_by_key(|sent| sent.version)
    }

    /// The certain state of the row, with its `last_update` if known; `None` if a lost response makes it
    /// doubtful.
    fn known(&self, row: RowId) -> Option<(&Effect, Option<&String>)> {
        let floor = self.floor(row, u64::MAX)?;
        let doubtful = self.by_row[&row].iter().any(|id| {
            let sent = &self.sent[*id];
            sent.fate == Fate::Unknown && sent.version > floor.version
        });
        (!doubtful).then(|| (&floor.rows[&row], floor.stamps.get(&row)))
    }

    /// Holds what a server shows of a row, as of a version of the owner, against all that was written.
    pub fn check(&mut self, row: RowId, version: u64, seen: Seen<'_>) -> Result<(), Wrong> {
        let (floor, floor_version) = match self.floor(row, version) {
            Some(sent) => (Some((sent.rows[&row].clone(), sent.stamps.get(&row).cloned())), sent.version),
            None => (None, 0),
        };
        let is_floor = match (&floor, seen) {
            (None | Some((Effect::Deleted, _)), Seen::Absent) => true,
            (Some((Effect::Live(_), stamp)), Seen::Listed(listed)) => {
                stamp.as_ref().is_none_or(|stamp| stamp == listed)
            }
            (Some((Effect::Live(token), stamp)), Seen::Whole(shown, listed)) => {
                token == shown && stamp.as_ref().is_none_or(|stamp| stamp == listed)
            }
            _ => false,
        };
        if is_floor {
            return Ok(());
        }
        let claims = self.by_row.get(&row).into_iter().flatten().copied();
        let mut doubtful = claims.filter(|id| {
            let sent = &self.sent[*id];
            sent.fate == Fate::Unknown && (floor_version + 1..=version).contains(&sent.version)
        });
        let (found, is_possible) = match seen {
            Seen::Absent => (None, doubtful.any(|id| self.sent[id].rows[&row] == Effect::Deleted)),
            Seen::Listed(_) => (None, doubtful.any(|id| self.sent[id].rows[&row] != Effect::Deleted)),
            Seen::Whole(shown, _) => {
                let found = doubtful.find(|id| self.sent[*id].rows[&row] == Effect::Live(shown.to_owned()));
                (found, found.is_some())
            }
        };
        if let Some(id) = found {
            self.settle(id, Fate::Found)?; // from now on its other rows must be there as well
        }
        if is_possible {
            return Ok(());
        }
        let claims = self.by_row.get(&row).into_iter().flatten().map(|id| &self.sent[*id]);
        let claims: Vec<_> = claims
            .filter(|sent| sent.version + 3 >= floor_version)
            .map(|sent| (sent.device, sent.version, sent.fate, &sent.rows[&row]))
            .collect();
        Err(format!("{row:?} at version {version} is {seen:?}, must be {floor:?}; written by {claims:?}"))
    }
}
