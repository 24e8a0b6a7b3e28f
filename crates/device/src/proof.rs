//! The check at the end of a sync: the device's digests must equal the server's.

use super::digest::Seed;
use super::responses::Digests;
use super::store::names;
use super::sync::{Progress, SyncError, Syncing};

/// The result of the comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// The server sent no digests, or another device wrote in the meantime.
    #[default]
    Unsaid,
    /// Both sides are equal.
    Equal,
    /// They differed, and are equal after one repair.
    Repaired,
    /// These tables differ, even after a repair.
    Unequal(Vec<String>),
}

impl Syncing<'_> {
    /// Compares the server's digests with those of the device; repairs once by manifest.
    pub(super) fn verify(&mut self) -> Result<(), SyncError> {
        let as_of = self.proof.as_ref().map(|said| said.as_of);
        let lost = as_of.is_some() && as_of < self.store.known_version()?;
        self.report.proof = match self.unequal()? {
            None if !lost => Proof::Unsaid,
            Some(tables) if !lost && tables.is_empty() => Proof::Equal,
            _ => {
                // At one version, each side may hold what the other does not. So a row that is missing there
                // need not be deleted.
                (self.progress)(Progress::Repairing);
                let mode = self.report.mode;
                self.doubt = true;
                self.by_manifest(false)?;
                self.doubt = false;
                self.rest()?;
                self.report.mode = mode;
                match self.unequal()? {
                    Some(tables) if !tables.is_empty() => Proof::Unequal(tables),
                    _ => Proof::Repaired,
                }
            }
        };
        Ok(())
    }

    /// The tables that differ; `None` if there is nothing to compare.
    fn unequal(&mut self) -> Result<Option<Vec<String>>, SyncError> {
        let Some(said) = self.proof.take() else { return Ok(None) };
        if self.store.cursor()? != Some(said.as_of) {
            return Ok(None); // another device wrote since: the digests are those of another state
        }
        let Some(seed) = self.seed()? else { return Ok(None) };
        let differ = self.differ(&said, &seed)?;
        if !differ.is_empty() {
            self.store.forget(names::SEED)?; // a server that has lost the owner creates another one
        }
        Ok(Some(differ))
    }

    /// The tables whose digests differ.
    fn differ(&self, said: &Digests, seed: &Seed) -> Result<Vec<String>, SyncError> {
        let ours = self.store.digests(seed)?;
        let differ =
            |(name, digest): &(&String, _)| said.tables.get(*name).is_some_and(|said| said != *digest);
        Ok(ours.iter().filter(differ).map(|(name, _)| name.clone()).collect())
    }

    fn seed(&mut self) -> Result<Option<Seed>, SyncError> {
        if let Some(text) = self.store.recall(names::SEED)? {
            return Ok(Seed::parse(&text));
        }
        let Some(text) = self.calls.digest_seed()? else { return Ok(None) };
        self.store.remember(names::SEED, &text)?;
        Ok(Seed::parse(&text))
    }
}
