//! Statements over several rows. Not every PostgreSQL-compatible database supports `INSERT … SELECT` from
//! multi-argument `unnest`, so there is a statement for each of several row counts.

use std::fmt::Write as _;

use postgres::types::{ToSql, Type};

use super::session::{Param, Session};
use rollcall_core::storage::StorageResult;

/// One statement over several rows, for several row counts.
pub struct Put(Vec<(usize, String)>);

/// How the parameters of a row are numbered. Shared parameters come first, once.
#[derive(Clone, Copy)]
pub(super) enum Row {
    /// Number of parameters that all rows share.
    WithShared(usize),
    /// The rows share none; this many parameters are elsewhere in the statement.
    WithoutShared(usize),
}

/// The row counts of a statement. Any number of rows is a few of these; small syncs write one row.
const COUNTS: [usize; 11] = [256, 64, 16, 8, 7, 6, 5, 4, 3, 2, 1];

/// So many rows at most are written to two tables by one statement: there is one for each number of them.
pub const PAIRED_MAX: usize = 8;

/// One more statement costs about as much as reading this many entries of an index.
const ENTRIES_PER_STATEMENT: u64 = 128;

/// Whether one statement over a list of keys costs less in the worst case than one statement for each key.
/// The list may cause a scan of all entries of the owner.
pub(super) fn as_a_list(keys: usize, entries: u64) -> bool {
    keys > 1 && entries <= ENTRIES_PER_STATEMENT * keys as u64
}

/// The parts of a statement over several rows.
#[derive(Clone)]
pub(super) struct Parts {
    /// What stands before the rows.
    pub head: String,
    pub row: Row,
    /// How many parameters a row has of its own.
    pub each: usize,
    /// What stands after the rows.
    pub tail: String,
}

impl Parts {
    /// The statement over so many rows, of which the own parameters come after the first `taken`.
    fn text(&self, rows: usize, taken: usize) -> String {
        let before = match self.row {
            Row::WithShared(shared) => shared,
            Row::WithoutShared(_) => 0,
        };
        let mut sql = self.head.clone();
        for row in 0..rows {
            sql.push_str(if row == 0 { "(" } else { ", (" });
            let own = taken + row * self.each + 1..=taken + (row + 1) * self.each;
            for (place, at) in (1..=before).chain(own).enumerate() {
                let _ = write!(sql, "{}${at}", if place == 0 { "" } else { ", " });
            }
            sql.push(')');
        }
        sql.push_str(&self.tail);
        sql
    }

    fn shared(&self) -> usize {
        match self.row {
            Row::WithShared(shared) | Row::WithoutShared(shared) => shared,
        }
    }
}

impl Put {
    pub(super) fn new(parts: &Parts) -> Self {
        Self(COUNTS.into_iter().map(|count| (count, parts.text(count, parts.shared()))).collect())
    }

    /// One statement that runs two over the same few rows ([`PAIRED_MAX`]). The shared parameters are those of the first
    /// one, then come its own of all rows, then the second one's.
    pub(super) fn pair(first: &Parts, second: &Parts) -> Self {
        let paired = |count: usize| {
            let (shared, own) = (first.shared(), first.each * count);
            let (first, second) = (first.text(count, shared), second.text(count, shared + own));
            (count, format!("WITH first AS ({first}) {second}"))
        };
        Self(COUNTS.into_iter().filter(|count| *count <= PAIRED_MAX).map(paired).collect())
    }

    /// The statement for the largest count up to this number of rows, and that count.
    pub fn for_rows(&self, rows: usize) -> (usize, &str) {
        let fits = self.0.iter().find(|(count, _)| *count <= rows).or(self.0.last());
        fits.map_or((1, ""), |(count, sql)| (*count, sql))
    }

    /// Runs it over any number of rows, in parts; returns the returned rows.
    pub(super) fn run<'r>(
        &self,
        session: &mut Session,
        shared: &[Param<'_>],
        rows: usize,
        each: &dyn Fn(usize, &mut Vec<Bindable<'r>>),
    ) -> StorageResult<Vec<postgres::Row>> {
        let (mut done, mut returned) = (0, Vec::new());
        while done < rows {
            let (count, sql) = self.for_rows(rows - done);
            let mut bound = Vec::new();
            (done..done + count).for_each(|row| each(row, &mut bound));
            let of_rows = bound.iter().map(|(value, kind)| (&**value, kind.clone()));
            let params: Vec<Param<'_>> = shared.iter().cloned().chain(of_rows).collect();
            returned.extend(session.query(sql, &params)?);
            done += count;
        }
        Ok(returned)
    }
}

impl Put {
    /// Runs a [`Put::pair`] over at most [`PAIRED_MAX`] rows: `each` binds the parameters of a row, first those of the
    /// first statement for all rows.
    pub(super) fn run_pair<'r>(
        &self,
        session: &mut Session,
        shared: &[Param<'_>],
        rows: usize,
        each: [&Bind<'_, 'r>; 2],
    ) -> StorageResult<()> {
        if rows == 0 {
            return Ok(());
        }
        let (_, sql) = self.for_rows(rows);
        let mut bound = Vec::new();
        each.iter().for_each(|each| (0..rows).for_each(|row| each(row, &mut bound)));
        let of_rows = bound.iter().map(|(value, kind)| (&**value, kind.clone()));
        let params: Vec<Param<'_>> = shared.iter().cloned().chain(of_rows).collect();
        session.execute(sql, &params).map(drop)
    }
}

/// Binds the parameters of a row, by its place.
pub(super) type Bind<'f, 'r> = dyn Fn(usize, &mut Vec<Bindable<'r>>) + 'f;

/// A value that lives as long as its statement, with its type.
pub(super) type Bindable<'a> = (Box<dyn ToSql + Sync + 'a>, Type);
