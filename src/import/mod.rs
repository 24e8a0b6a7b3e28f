//! Puts an export into a server: the rows of each owner, by the ordinary path of an upload.
//!
//! A row keeps its key and its `last_update`. So a row that is there already is the same, and nothing is written for it: an
//! import that was interrupted goes on when it is begun again, and one that is repeated changes nothing. A row that the server
//! has with a later time stays as it is, and so does one that was deleted there since.
//!
//! - `file`: what is in the export. It is read several times and never held in memory.
//! - `fits`: whether the tables of the export are those of the server.
//! - `rows`: the rows, in batches of a bounded size, and the result of each.

pub mod file;
pub mod fits;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek};

use uuid::Uuid;

use crate::clock::Clock;
use crate::config::Limits;
use crate::members;
use crate::model::{Owner, Role};
use crate::schema::Schema;
use crate::storage::accounts::{MemberChange, User};
use crate::storage::{Storage, StorageError};
use file::{ExportFile, Section};
use rows::Target;

/// Longest name of an owner, characters.
const NAME_CHARS_MAX: usize = 100;

/// Why an import stopped. What was added before stays.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's message describes it
pub enum ImportError {
    #[error("line {line} is no line of an export: {reason}")]
    NotAnExport { line: u64, reason: String },
    #[error("the export broke off: {ended} of its {expected} owners are whole; export again")]
    BrokenOff { ended: usize, expected: usize },
    #[error("the file changed while it was read")]
    Changed,
    #[error("the tables of the export do not fit those of this server:\n{}", .0.join("\n"))]
    Unfit(Vec<String>),
    #[error("there is no owner {0}")]
    NoOwner(Owner),
    #[error("the user may not write rows of the owner {0}")]
    NotAllowed(Owner),
    #[error("the user is a member of {0} owners already, and of no more by owners_per_user_max")]
    TooManyOwners(usize),
    #[error(
        "the owner {owner} would have {reason}; what was added before stays. Raise the limit, and run the import again"
    )]
    Quota { owner: Owner, reason: String },
    #[error("interrupted")]
    Interrupted,
    #[error("cannot read the export, or write the rejected rows: {0}")]
    Io(#[from] std::io::Error),
    #[error("the database failed, and what was added before stays; run the import again: {0}")]
    Storage(#[from] StorageError),
    #[error("a row cannot be applied: {0}")]
    Internal(String),
}

/// Where the rows go, and within which limits.
pub struct Import<'a> {
    /// The engine.
    pub storage: &'a dyn Storage,
    /// The declared tables.
    pub schema: &'a Schema,
    /// The limits of rows and owners.
    pub limits: &'a Limits,
    /// The present time.
    pub clock: &'a Clock,
    /// Whether nothing is written. References are not checked then, since the rows that they name may be missing still.
    pub is_dry_run: bool,
}

/// Who gets the rows.
#[derive(Clone, Debug)]
pub enum Recipient {
    /// A user: the rows of the first owner go to the owner of the user's requests.
    User(User),
    /// An owner, which gets the rows of the first owner. The operator does that, in no member's name.
    Owner(Owner),
}

/// Which of the owners after the first one are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Others {
    /// Those that the user managed
    Managed,
    /// All of them, also those that the user could only read
    All,
    /// None of them
    None,
}

/// How far an import is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Rows that have their result.
    pub done: u64,
    /// All rows of the owners that are taken.
    pub all: u64,
}

/// What became of an owner of the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Its id in the export.
    pub source: Owner,
    /// Its name in the export; may be empty.
    pub name: String,
    /// Where its rows went, and how many of them have each verdict; or why they were left out.
    pub result: Result<(Owner, BTreeMap<&'static str, u64>), String>,
}

impl Imported {
    /// How many of its rows were rejected.
    pub fn rejected(&self) -> u64 {
        let counts = self.result.as_ref().ok().map(|(_, counts)| counts);
        counts.and_then(|counts| counts.get("rejected")).copied().unwrap_or_default()
    }
}

/// What a caller sees of an import while it runs.
pub trait Watch {
    /// Called between two batches; returns whether to continue.
    fn step(&mut self, step: Step) -> bool;

    /// Called with each row that was rejected: its owner in the export, table, key, the reason, and the row.
    fn rejected(&mut self, row: &serde_json::Value) -> std::io::Result<()>;
}

impl Import<'_> {
    /// How the tables of an export differ from those of this server.
    ///
    /// Errors: [`ImportError::Unfit`] if its rows cannot be taken.
    pub fn compare<R>(&self, file: &ExportFile<R>) -> Result<Vec<String>, ImportError> {
        let with_rows: BTreeSet<&str> =
            file.owners.iter().flat_map(|one| one.rows.keys().map(String::as_str)).collect();
        let found = fits::compare(&file.tables, &with_rows, self.schema);
        if found.faults.is_empty() { Ok(found.notes) } else { Err(ImportError::Unfit(found.faults)) }
    }

    /// Adds the rows of an export; returns what became of each owner.
    ///
    /// - Before the first row is written, every owner has its place, or is left out.
    /// - Errors: also those of [`Self::compare`].
    pub fn run<R: Read + Seek>(
        &self,
        file: &mut ExportFile<R>,
        recipient: &Recipient,
        others: Others,
        watch: &mut dyn Watch,
    ) -> Result<Vec<Imported>, ImportError> {
        self.compare(file)?;
        let mut places = Vec::new();
        for (at, section) in file.owners.iter().enumerate() {
            places.push(match recipient {
                Recipient::Owner(owner) if at == 0 => Ok(self.operators(*owner)?),
                Recipient::Owner(_) => Err("--owner takes the first owner of the export alone".to_owned()),
                Recipient::User(user) if at == 0 => Ok(self.first(user, section)?),
                Recipient::User(user) => self.other(user, section, others)?,
            });
        }
        let taken = places.iter().zip(&file.owners).filter(|(place, _)| place.is_ok());
        let mut step = Step { done: 0, all: taken.map(|(_, section)| section.row_count()).sum() };
        let mut imported = Vec::new();
        for (at, place) in places.into_iter().enumerate() {
            let Some(Section { owner, name, .. }) = file.owners.get(at) else { continue };
            let (source, name) = (*owner, name.clone());
            let result = match place {
                Ok(target) => Ok((target.owner, rows::import(self, file, at, target, &mut step, watch)?)),
                Err(reason) => Err(reason),
            };
            imported.push(Imported { source, name, result });
        }
        Ok(imported)
    }

    fn operators(&self, owner: Owner) -> Result<Target, ImportError> {
        let is_there = self.storage.read(owner, |txn| {
            let state = txn.state();
            Ok::<_, StorageError>(
                state.erased_at.is_none() && (state.seed.is_some() || txn.member_count()? > 0),
            )
        })?;
        if is_there {
            Ok(Target { owner, user: None, is_new: false })
        } else {
            Err(ImportError::NoOwner(owner))
        }
    }

    /// The place of the rows of the first owner.
    fn first(&self, user: &User, section: &Section) -> Result<Target, ImportError> {
        match self.role(user, user.owner)? {
            None | Some(Role::Read) if section.row_count() > 0 => Err(ImportError::NotAllowed(user.owner)),
            _ => Ok(Target { owner: user.owner, user: Some(user.id), is_new: false }),
        }
    }

    /// The place of another owner's rows, or why they are left out.
    fn other(
        &self,
        user: &User,
        section: &Section,
        others: Others,
    ) -> Result<Result<Target, String>, ImportError> {
        if others == Others::None {
            return Ok(Err("--others none leaves it out".into()));
        }
        // On the server that the export is from, the rows go back to where they were.
        if self.role(user, section.owner)? >= Some(Role::Write) {
            return Ok(Ok(Target { owner: section.owner, user: Some(user.id), is_new: false }));
        }
        if section.role != Some(Role::Manage) && others == Others::Managed {
            let reason = "the user did not manage it; --others all makes an owner for a copy of its rows";
            return Ok(Err(reason.into()));
        }
        self.make(user, section)
    }

    /// Makes the owner for another owner's rows. A second import finds the same one.
    fn make(&self, user: &User, section: &Section) -> Result<Result<Target, String>, ImportError> {
        let (accounts, now) = (self.storage.accounts(), self.clock.now());
        let owner = imported_as(user.id, section.owner);
        let target = Target { owner, user: Some(user.id), is_new: self.is_dry_run };
        if self.role(user, owner)?.is_some() {
            return Ok(Ok(Target { is_new: false, ..target }));
        }
        let owners_max = self.limits.owners_per_user_max;
        if accounts.owners_of(user.id)?.len() >= owners_max {
            return Err(ImportError::TooManyOwners(owners_max));
        }
        if self.is_dry_run {
            return Ok(Ok(target));
        }
        // The list of the user's owners first: what its owner does not confirm is not shown.
        accounts.list_owner(user.id, owner, true)?;
        let name = name_of(&section.name);
        let made = self.storage.write(owner, |txn| members::found(txn, user.id, name, now))?;
        if made.is_err() {
            accounts.list_owner(user.id, owner, false)?;
            return Ok(Err("the user has left the owner that an earlier import made, or deleted it".into()));
        }
        accounts.notify_members_changed(MemberChange { owner, user: Some(user.id), left: false });
        Ok(Ok(target))
    }

    fn role(&self, user: &User, owner: Owner) -> Result<Option<Role>, ImportError> {
        let standing = self.storage.accounts().standing(user.id, owner)?;
        Ok(standing.role.filter(|_| !standing.is_erased).map(|(role, _)| role))
    }
}

/// The owner that a user gets for an owner of an export: always the same one, and nobody else's.
fn imported_as(user: Uuid, source: Owner) -> Owner {
    Owner(Uuid::new_v5(&Uuid::new_v5(&user, b"import"), source.0.as_bytes()))
}

/// A name that an owner may have; otherwise none.
fn name_of(name: &str) -> &str {
    let is_good = name.chars().count() <= NAME_CHARS_MAX && !name.contains(char::is_control);
    if is_good { name } else { "" }
}
