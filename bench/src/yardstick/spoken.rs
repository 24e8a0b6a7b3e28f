//! The statements of a server for one small sync, to measure their cost without a server.

use std::time::Duration;

use postgres::Client;

use rollcall_core::schema::{Schema, TableId};
use rollcall_postgres::Address;
use rollcall_postgres::session::{Purpose, Timeouts};
use rollcall_postgres::statements::{self, Statements};

/// The statements, in order.
pub struct Spoken {
    /// The time, before each statement about a lease.
    pub now: String,
    /// Whether another device holds the lock.
    pub lease: String,
    /// Begins the transaction.
    pub begin: String,
    /// Takes the owner's row.
    pub lock: String,
    /// Loads the stored state of the sent rows.
    pub load: String,
    /// What the tables hold.
    pub digests: String,
    /// The ledger entries and the rows of a few rows.
    pub put_both: String,
    /// As many ledger entries as rows come, where these are more.
    pub put_entries: String,
    /// The rows.
    pub put_rows: String,
    /// Once a day.
    pub date: String,
    /// What the table holds now, and the owner's new version.
    pub advance: String,
    /// What the device has not seen.
    pub changes: String,
    /// The columns of those rows.
    pub values: String,
    /// Ends the transaction.
    pub commit: String,
    /// Makes an owner, before all that.
    pub add_owner: String,
}

impl Spoken {
    /// For syncs of so many new rows of a table, which the ledger knows by the number `id`.
    pub fn of(schema: &Schema, table: TableId, id: i32, rows: usize) -> Self {
        let ids: Vec<i32> = schema.tables().iter().map(|_| id).collect();
        let all = Statements::new(schema, &ids);
        let seconds = Duration::from_secs(30);
        let timeouts =
            Timeouts { lock: seconds, statement: seconds, idle: seconds, is_spread: false, is_set: true };
        let own = all.of(table);
        Self {
            now: statements::NOW.into(),
            lease: statements::LEASE.into(),
            begin: timeouts.begin(Purpose::Write),
            lock: statements::LOCK_OWNER.into(),
            load: own.load.clone(),
            digests: statements::DIGESTS.into(),
            put_both: own.put_both.for_rows(rows).1.into(),
            put_entries: all.put_entries.for_rows(rows).1.into(),
            put_rows: own.put.for_rows(rows).1.into(),
            date: statements::DATE.into(),
            advance: statements::ADVANCE_WITH_DIGEST.into(),
            changes: statements::CHANGES.into(),
            values: own.values.clone(),
            commit: "COMMIT".into(),
            add_owner: statements::ADD_OWNER.into(),
        }
    }

    /// Opens a connection for them.
    pub fn connect(address: &Address) -> Result<Client, postgres::Error> {
        address.connect(Duration::from_secs(5), None)
    }
}
