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

/// One more statement costs about as much as reading this many entries of an index.
const ENTRIES_PER_STATEMENT: u64 = 128;

/// Whether one statement over a list of keys costs less in the worst case than one statement for each key.
/// The list may cause a scan of all entries of the owner.
pub(super) fn as_a_list(keys: usize, entries: u64) -> bool {
    keys > 1 && entries <= ENTRIES_PER_STATEMENT * keys as u64
}

impl Put {
    /// Builds the statements: rows between `head` and `tail`, with `each` parameters of their own.
    pub(super) fn new(head: &str, row: Row, each: usize, tail: &str) -> Self {
        let (shared, before) = match row {
            Row::WithShared(shared) => (shared, shared),
            Row::WithoutShared(shared) => (shared, 0),
        };
        let statement = |count: usize| {
            let mut sql = head.to_owned();
            for row in 0..count {
                sql.push_str(if row == 0 { "(" } else { ", (" });
                let own = shared + row * each + 1..=shared + (row + 1) * each;
                for (place, at) in (1..=before).chain(own).enumerate() {
                    let _ = write!(sql, "{}${at}", if place == 0 { "" } else { ", " });
                }
                sql.push(')');
            }
            sql.push_str(tail);
            (count, sql)
        };
        Self(COUNTS.into_iter().map(statement).collect())
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

/// A value that lives as long as its statement, with its type.
pub(super) type Bindable<'a> = (Box<dyn ToSql + Sync + 'a>, Type);
