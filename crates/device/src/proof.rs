//! The proof at the end of a sync: what the device knows gives the digests that the server tells.

use super::digest::Seed;
use super::responses::Digests;
use super::store::names;
use super::sync::{Progress, SyncError, Syncing};

/// What the digests said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// The server does not say, or somebody wrote in the meantime.
    #[default]
    Unsaid,
    /// Both sides are equal.
    Equal,
    /// They were not, and are after one repair.
    Repaired,
    /// They are not, not even after a repair: these tables.
    Unequal(Vec<String>),
}

impl Syncing<'_> {
    /// Compares the server's digests with what the device knows; repairs once by manifest.
    pub(super) fn verify(&mut self) -> Result<(), SyncError> {
        let as_of = self.proof.as_ref().map(|said| said.as_of);
        let lost = as_of.is_some() && as_of < self.store.known_version()?;
        self.report.proof = match self.unequal()? {
            None if !lost => Proof::Unsaid,
            Some(tables) if !lost && tables.is_empty() => Proof::Equal,
            _ => {
                // Either side holds what the other does not, at one version: nothing proves that a row which is absent
                // there was deleted.
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
            return Ok(None); // somebody wrote since: it is a proof of another state
        }
        let Some(seed) = self.seed()? else { return Ok(None) };
        let differ = self.differ(&said, &seed)?;
        if !differ.is_empty() {
            self.store.forget(names::SEED)?; // a server that has forgotten the owner draws another one
        }
        Ok(Some(differ))
    }

    /// The tables whose digests are not what the device knows gives.
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
