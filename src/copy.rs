//! Copies a deployment from one database to another, part by part, and verifies that both hold the same.
//!
//! A part that is equal on both sides is skipped, and a different one is replaced completely. So an
//! interrupted copy continues where it was, and a repeated one copies what has changed since.

use std::collections::VecDeque;
use std::iter::Peekable;

use sha2::{Digest as _, Sha256};

use crate::error_chain::error_chain;
use crate::model::{Fence, Owner, Value};
use crate::storage::whole::{Deployment, Part, Sections, Target, Whole};
use crate::storage::{Outcome, OwnerState, StorageError};

/// The progress of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Owners that are equal on both sides.
    pub owners: u64,
    /// Live rows, including those of the current owner.
    pub rows: u64,
}

/// Called with the progress; returns whether to continue.
pub type Watch<'a> = &'a mut dyn FnMut(Step) -> bool;

/// The result of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Owners on both sides.
    pub owners: u64,
    /// The number of owners that were copied; the others were equal already.
    pub carried: u64,
    /// Their live rows.
    pub rows: u64,
}

/// Why the databases differ, or could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The caller stopped the copy.
    #[error("interrupted")]
    Interrupted,
    /// The copy contains an owner that the source does not have.
    #[error("the destination holds the owner {0}, who is none of the source's: it is another deployment's")]
    Stranger(Owner),
    /// Both sides were read, and differ.
    #[error("{parts} of the copy's parts are not what the source holds:\n{}", .differences.join("\n"))]
    Differs {
        /// How many owners differ, counting the accounts as one.
        parts: u64,
        /// The first differences, one line for each table.
        differences: Vec<String>,
    },
    /// The source cannot be read.
    #[error("cannot read {what} from the source: {}", error_chain(.error))]
    Source {
        /// The part that was read.
        what: String,
        /// The engine's error.
        error: StorageError,
    },
    /// The destination cannot be read or written.
    #[error("cannot copy {what} to the destination: {}", error_chain(.error))]
    Destination {
        /// The part that was copied.
        what: String,
        /// The engine's error.
        error: StorageError,
    },
}

/// Copies `from` to `to`, and reads both to verify it.
pub fn copy(
    from: &dyn Whole,
    deployment: &Deployment,
    to: &dyn Target,
    each: Watch<'_>,
) -> Result<Copied, CopyError> {
    Pass::new(from, deployment, to, Some(to), each).run()
}

/// Reads both sides, without changing anything.
pub fn compare(
    from: &dyn Whole,
    deployment: &Deployment,
    to: &dyn Whole,
    each: Watch<'_>,
) -> Result<Copied, CopyError> {
    Pass::new(from, deployment, to, None, each).run()
}

struct Pass<'a> {
    from: &'a dyn Whole,
    to: &'a dyn Whole,
    target: Option<&'a dyn Target>,
    sections: Sections,
    fence: Fence,
    each: Watch<'a>,
    copied: Copied,
    different: u64,
    differences: Vec<String>,
}

/// Most differences that are reported; there may be as many as owners.
const DIFFERENCES_MAX: usize = 20;

/// Rows between two progress reports.
const ROWS_A_LOOK: u64 = 1_000;

impl<'a> Pass<'a> {
    fn new(
        from: &'a dyn Whole,
        deployment: &Deployment,
        to: &'a dyn Whole,
        target: Option<&'a dyn Target>,
        each: Watch<'a>,
    ) -> Self {
        let sections = Sections::of(&deployment.schema);
        let (copied, differences) = (Copied::default(), Vec::new());
        Self { from, to, target, sections, fence: deployment.fence, each, copied, different: 0, differences }
    }

    fn run(mut self) -> Result<Copied, CopyError> {
        self.refuse_strangers()?;
        self.part(Part::Accounts)?;
        let (mut owners, mut copies) = (Owners::of(self.from).peekable(), Owners::of(self.to).peekable());
        while let Some((owner, state)) = Side::Source.next(&mut owners)? {
            let part = Part::Owner(owner);
            match Side::Copy.taken(&mut copies, owner)? {
                None => self.carry(part)?,
                Some(copied) if copied == state => self.part(part)?,
                Some(_) if self.target.is_some() => self.carry(part)?,
                Some(_) => self.part(part)?,
            }
            self.copied.owners += 1;
            self.copied.rows += state.rows;
            if !(self.each)(step(&self.copied, 0)) {
                return Err(CopyError::Interrupted);
            }
        }
        match self.different {
            0 => Ok(self.copied),
            parts => Err(CopyError::Differs { parts, differences: self.differences }),
        }
    }

    /// Checks every owner of the copy before the first is written.
    fn refuse_strangers(&self) -> Result<(), CopyError> {
        let (mut owners, mut copies) = (Owners::of(self.from).peekable(), Owners::of(self.to).peekable());
        while let Some((copy, copied)) = Side::Copy.next(&mut copies)? {
            let known = loop {
                match Side::Source.next(&mut owners)? {
                    Some((owner, _)) if owner < copy => {}
                    // The seed is unique to an owner: the same id with another seed is a different owner.
                    Some((owner, state)) => break owner == copy && state.seed == copied.seed,
                    None => break false,
                }
            };
            if !known {
                return Err(CopyError::Stranger(copy));
            }
        }
        Ok(())
    }

    /// Makes a part equal on both sides, if the copy has it already.
    fn part(&mut self, part: Part) -> Result<(), CopyError> {
        let (held, copied) = (self.tally(Side::Source, part)?, self.tally(Side::Copy, part)?);
        match self.target {
            _ if held == copied => Ok(()),
            Some(_) => self.carry(part),
            None => {
                self.differs(part, &held, &copied);
                Ok(())
            }
        }
    }

    /// Copies a part, and reads the result.
    fn carry(&mut self, part: Part) -> Result<(), CopyError> {
        let Some(target) = self.target else {
            self.different += 1;
            self.report(format!("{}: not in the copy", name(part)));
            return Ok(());
        };
        let held = self.replace(target, part)?;
        self.copied.carried += u64::from(part != Part::Accounts);
        let copied = self.tally(Side::Copy, part)?;
        if held != copied {
            self.differs(part, &held, &copied);
        }
        Ok(())
    }

    /// Copies a part; returns the tally of what was read.
    fn replace(&mut self, target: &dyn Target, part: Part) -> Result<Vec<Tally>, CopyError> {
        let (mut tallies, mut unread, mut stopped) = (Vec::new(), None, false);
        let done = target.replace(part, self.fence, &mut |put| {
            tallies = vec![Tally::default(); self.sections.of_part(part).len()];
            let (mut refused, mut live) = (None, 0);
            let read = self.from.read(part, &mut |place, row| {
                tallies[place].add(row);
                refused = put(place, row).err();
                live += u64::from(self.sections.is_declared(part, place));
                stopped = live % ROWS_A_LOOK == 1 && !(self.each)(step(&self.copied, live));
                refused.is_none() && !stopped
            });
            match (refused, read) {
                (Some(error), _) => Err(error),
                (None, Ok(())) if !stopped => Ok(Outcome::Commit),
                (None, read) => {
                    unread = read.err();
                    Ok(Outcome::Rollback)
                }
            }
        });
        match (unread, done) {
            (Some(error), _) => Err(Side::Source.failed(name(part), error)),
            (None, Err(error)) => Err(Side::Copy.failed(name(part), error)),
            (None, Ok(())) if stopped => Err(CopyError::Interrupted),
            (None, Ok(())) => Ok(tallies),
        }
    }

    /// The contents of a part on one side, table by table.
    fn tally(&mut self, side: Side, part: Part) -> Result<Vec<Tally>, CopyError> {
        let whole = if side == Side::Source { self.from } else { self.to };
        let mut tallies = vec![Tally::default(); self.sections.of_part(part).len()];
        let (mut rows, mut stopped) = (0_u64, false);
        let read = whole.read(part, &mut |place, row| {
            tallies[place].add(row);
            rows += 1;
            stopped = rows % ROWS_A_LOOK == 0 && !(self.each)(step(&self.copied, 0));
            !stopped
        });
        read.map_err(|error| side.failed(name(part), error))?;
        if stopped { Err(CopyError::Interrupted) } else { Ok(tallies) }
    }

    fn differs(&mut self, part: Part, held: &[Tally], copied: &[Tally]) {
        self.different += 1;
        let tables = self.sections.of_part(part).iter().map(|section| &section.table);
        let lines: Vec<String> = tables
            .zip(held.iter().zip(copied))
            .filter(|(_, (held, copied))| held != copied)
            .map(|(table, (held, copied))| {
                let what = match held.rows == copied.rows {
                    true => format!("{} rows on both sides, and they are not the same", held.rows),
                    false => format!("{} rows in the source, {} in the copy", held.rows, copied.rows),
                };
                format!("{}, {table}: {what}", name(part))
            })
            .collect();
        lines.into_iter().for_each(|line| self.report(line));
    }

    fn report(&mut self, line: String) {
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(line);
        }
    }
}

fn step(copied: &Copied, live: u64) -> Step {
    Step { owners: copied.owners, rows: copied.rows + live }
}

fn name(part: Part) -> String {
    match part {
        Part::Accounts => "the accounts".into(),
        Part::Owner(owner) => format!("owner {owner}"),
    }
}

/// The number of rows of a table, and the sum of their hashes modulo 2^128, which does not depend on their
/// order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    rows: u64,
    sum: u128,
}

impl Tally {
    fn add(&mut self, row: &[Value]) {
        let mut hash = Sha256::new();
        row.iter().for_each(|value| feed(&mut hash, value));
        let mut first = [0; 16];
        first.copy_from_slice(&hash.finalize()[..16]);
        self.rows += 1;
        self.sum = self.sum.wrapping_add(u128::from_be_bytes(first));
    }
}

/// Every column has one type, so a value is identified by its bytes and their length.
fn feed(hash: &mut Sha256, value: &Value) {
    let mut sized = |bytes: &[u8]| {
        hash.update((bytes.len() as u64 + 1).to_be_bytes());
        hash.update(bytes);
    };
    match value {
        Value::Null => hash.update([0; 8]),
        Value::Boolean(value) => sized(&[u8::from(*value)]),
        Value::Integer(value) => sized(&value.to_be_bytes()),
        Value::Real(value) => sized(&value.to_bits().to_be_bytes()),
        Value::Decimal(value) => sized(value.normalize().to_string().as_bytes()),
        Value::Text(text) | Value::Json(text) => sized(text.as_bytes()),
        Value::Uuid(id) => sized(id.as_bytes()),
        Value::Timestamp(at) => sized(&at.ms().to_be_bytes()),
        Value::Date(day) => sized(day.to_string().as_bytes()),
        Value::Blob(bytes) => sized(bytes),
    }
}

/// Every owner of a database by id, read in pages.
struct Owners<'a> {
    whole: &'a dyn Whole,
    page: VecDeque<(Owner, OwnerState)>,
    last: Option<Owner>,
    ended: bool,
}

const OWNERS_A_PAGE: usize = 1_000;

impl<'a> Owners<'a> {
    fn of(whole: &'a dyn Whole) -> Self {
        Self { whole, page: VecDeque::new(), last: None, ended: false }
    }
}

impl Iterator for Owners<'_> {
    type Item = Result<(Owner, OwnerState), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.is_empty() && !self.ended {
            match self.whole.owners(self.last, OWNERS_A_PAGE) {
                Ok(page) => self.page = page.into(),
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
            self.ended = self.page.len() < OWNERS_A_PAGE;
            self.last = self.page.back().map(|(owner, _)| *owner);
        }
        self.page.pop_front().map(Ok)
    }
}

type Paged<'a> = Peekable<Owners<'a>>;

/// One of the two databases.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Copy,
}

impl Side {
    fn failed(self, what: String, error: StorageError) -> CopyError {
        match self {
            Self::Source => CopyError::Source { what, error },
            Self::Copy => CopyError::Destination { what, error },
        }
    }

    fn next(self, owners: &mut Paged<'_>) -> Result<Option<(Owner, OwnerState)>, CopyError> {
        owners.next().transpose().map_err(|error| self.failed("the owners".into(), error))
    }

    /// Returns the owner's state, if it is the next one.
    fn taken(self, owners: &mut Paged<'_>, owner: Owner) -> Result<Option<OwnerState>, CopyError> {
        let taken = owners.next_if(|next| next.as_ref().map_or(true, |(next, _)| *next == owner)).transpose();
        let taken = taken.map_err(|error| self.failed("the owners".into(), error))?;
        Ok(taken.map(|(_, state)| state))
    }
}
