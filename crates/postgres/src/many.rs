//! One statement over several rows. `INSERT … SELECT` from `unnest` is not taken by all that speak PostgreSQL's dialect, so
//! there is a statement for each of several counts of rows.

use std::fmt::Write as _;

use postgres::types::{ToSql, Type};

use super::session::{Param, Session};
use rollcall_core::storage::StorageResult;

/// One statement over several rows, for several counts of rows.
pub struct Put(Vec<(usize, String)>);

/// What a row of such a statement has before its own parameters. The shared ones come first, and once.
#[derive(Clone, Copy)]
pub(super) enum Row {
    /// So many that all rows share.
    WithShared(usize),
    /// Nothing; so many stand elsewhere in the statement.
    WithoutShared(usize),
}

/// How many rows a statement takes. Any number of rows is a few of these; what small syncs write is one.
const COUNTS: [usize; 11] = [256, 64, 16, 8, 7, 6, 5, 4, 3, 2, 1];

/// To send one statement more costs about as much as to look at so many entries of an index.
const ENTRIES_PER_STATEMENT: u64 = 128;

/// Whether one statement over a list of keys, which may look at all entries of the owner, costs less at worst than one
/// statement for each key.
pub(super) fn as_a_list(keys: usize, entries: u64) -> bool {
    keys > 1 && entries <= ENTRIES_PER_STATEMENT * keys as u64
}

impl Put {
    /// The rows stand between `head` and `tail`; `each` is how many parameters a row has of its own.
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

    /// The statement that takes the most of so many rows, and how many it takes.
    pub fn for_rows(&self, rows: usize) -> (usize, &str) {
        let fits = self.0.iter().find(|(count, _)| *count <= rows).or(self.0.last());
        fits.map_or((1, ""), |(count, sql)| (*count, sql))
    }

    /// Runs it over so many rows, as many at a time as it takes; returns what it returns.
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

/// A value that lives as long as the statement, with its type.
pub(super) type Bindable<'a> = (Box<dyn ToSql + Sync + 'a>, Type);
