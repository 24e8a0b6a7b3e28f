//! The proof at the end of a sync: what the device knows gives the digests that the server tells.

use super::answers::Digests;
use super::digest::Seed;
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
    pub(super) fn prove(&mut self) -> Result<(), SyncError> {
        self.report.proof = match self.unequal()? {
            None => Proof::Unsaid,
            Some(tables) if tables.is_empty() => Proof::Equal,
            Some(_) => {
                (self.progress)(Progress::Repairing);
                let way = self.report.way;
                self.by_manifest(false)?;
                self.report.way = way;
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
        let mut differ = self.differ(&said, &seed)?;
        if !differ.is_empty() {
            // A server that was restored from before the owner's first write has drawn another seed since.
            self.store.forget(names::SEED)?;
            if let Some(anew) = self.seed()?.filter(|anew| *anew != seed) {
                differ = self.differ(&said, &anew)?;
            }
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
