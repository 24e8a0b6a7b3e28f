//! What an operator does with a database occasionally: distribute its tables, begin a new epoch.

use postgres::error::SqlState;
use postgres::types::Type;

use super::OpenError;
use super::address::Address;
use super::connections::{Connections, Terms};
use super::session::{Param, Purpose};
use crate::failure::failed;
use rollcall_core::model::{Owner, Timestamp, Version};
use rollcall_core::schema::Schema;
use rollcall_core::storage::plan::quoted;
use rollcall_core::storage::{Owners, StorageError, StorageResult};

/// Small tables without an owner that never change in service.
const REFERENCE: [&str; 3] = ["rollcall_meta", "rollcall_table", "rollcall_column"];

/// Tables of one user's rows, with the column that leads; the first decides where a user lives.
const OF_USERS: [(&str, &str); 3] =
    [("rollcall_user", "id"), ("rollcall_device", "user_id"), ("rollcall_membership", "user_id")];

/// Tokens of erased users, which are found by the token alone.
const GONE: &str = "rollcall_gone";

/// Finds users and owners, and is spread by what is looked for.
const LOOKUP: &str = "rollcall_lookup";

/// What holds users and devices apart for servers of the release before, over all shards: a cluster cannot hold it.
const WITHIN_ONE_NODE: [(&str, &str); 4] = [
    ("rollcall_user", "rollcall_user_email_key"),
    ("rollcall_device", "rollcall_device_user_id_fkey"),
    ("rollcall_device", "rollcall_device_id_key"),
    ("rollcall_device", "rollcall_device_token_hash_key"),
];

/// rollcall's tables of owners' rows; the first decides where an owner lives.
const OWNED: [&str; 12] = [
    "rollcall_owner",
    "rollcall_ledger",
    "rollcall_digest",
    "rollcall_day",
    "rollcall_history",
    "rollcall_conflict",
    "rollcall_answer",
    "rollcall_ack",
    "rollcall_installation",
    "rollcall_delete_window",
    "rollcall_member",
    "rollcall_invitation",
];

const DISTRIBUTED: &str = "SELECT logicalrelid::text FROM pg_dist_partition";
/// Those that every node has a copy of.
const EVERYWHERE: &str = "SELECT logicalrelid::text FROM pg_dist_partition WHERE partmethod = 'n'";

/// The nodes that may get shards.
const NODES: &str = "SELECT count(*) FROM pg_dist_node WHERE isactive AND shouldhaveshards";

const EPOCH: &str = "SELECT value FROM rollcall_meta WHERE name = 'epoch' FOR UPDATE";
const SET_EPOCH: &str = "UPDATE rollcall_meta SET value = $1 WHERE name = 'epoch'";
/// Fences continue far above those that may have been given out after the restored time, or in an earlier
/// such period.
const BEGIN_EPOCH: &str = "UPDATE rollcall_owner SET version = $2, horizon = $2, fence = greatest(fence + 1048576, $3), \
     holder = NULL, lease_until = NULL WHERE owner = $1 AND version < $2";
/// Stored responses and cursors contain versions that no longer exist.
const FORGET: [&str; 2] =
    ["DELETE FROM rollcall_answer WHERE owner = $1", "DELETE FROM rollcall_ack WHERE owner = $1"];

/// The statements with which Citus spreads the tables over its nodes, all rows of an owner on one node.
///
/// Each has the name of its table.
pub fn distribution(schema: &Schema) -> Vec<(String, String)> {
    let reference = REFERENCE
        .into_iter()
        .map(|name| (name.to_owned(), format!("SELECT create_reference_table('{name}')")));
    let distributed = |name: &str, column: &str, first: &str| {
        let beside = if name == first { "none" } else { first };
        format!("SELECT create_distributed_table('{name}', '{column}', colocate_with => '{beside}')")
    };
    let owned = OWNED.into_iter().map(|name| (name.to_owned(), distributed(name, "owner", OWNED[0])));
    let user = OF_USERS[0].0;
    let undone = WITHIN_ONE_NODE.into_iter().map(|(table, constraint)| {
        // With the first table of users: the others refer to it.
        (user.to_owned(), format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {constraint}"))
    });
    let of_users =
        OF_USERS.into_iter().map(|(name, column)| (name.to_owned(), distributed(name, column, user)));
    let lookups = [(LOOKUP, "name"), (GONE, "token_hash")];
    let lookups = lookups.map(|(name, column)| (name.to_owned(), distributed(name, column, name)));
    // Declared names are letters, digits and "_": quoted, they stand in a text as they are.
    let declared = schema.parents_first().iter().map(|id| schema.at(*id));
    let declared = declared
        .map(|table| (table.name.clone(), distributed(&quoted(&table.name), &table.owner_column, OWNED[0])));
    reference.chain(undone).chain(of_users).chain(lookups).chain(owned).chain(declared).collect()
}

/// Runs those of the statements that are still needed; the callback is called before each one.
pub fn distribute(
    address: &Address,
    terms: &Terms,
    schema: &Schema,
    told: &mut dyn FnMut(&str),
) -> Result<(), OpenError> {
    let failed = |error| OpenError::database(address, &error);
    let mut session = Connections::single(address, terms)?;
    let done = session.query(DISTRIBUTED, &[]).map_err(|error| match &error {
        StorageError::Engine(cause) if is_unknown_table(&**cause) => {
            OpenError::NoCitus { address: address.to_string() }
        }
        _ => failed(error),
    })?;
    let nodes = session.row(NODES, &[]).map_err(failed)?;
    if nodes.and_then(|row| row.try_get::<_, i64>(0).ok()).unwrap_or_default() == 0 {
        return Err(OpenError::NoNodes { address: address.to_string() });
    }
    let everywhere = session.query(EVERYWHERE, &[]).map_err(failed)?;
    let [mut done, everywhere] = [done, everywhere].map(|rows| -> Vec<String> {
        let names = rows.iter().filter_map(|row| row.try_get::<_, String>(0).ok());
        names.map(|name| name.trim_matches('"').to_owned()).collect()
    });
    // An earlier release had every node keep all users, and all tokens of erased ones.
    let of_accounts = OF_USERS.iter().map(|(name, _)| *name).chain([GONE]);
    let copied: Vec<&str> = of_accounts.filter(|name| everywhere.iter().any(|one| one == name)).collect();
    done.retain(|name| !copied.contains(&name.as_str()));
    let mut run = |statement: &str| {
        told(statement);
        session.query(statement, &[]).map(drop).map_err(failed)
    };
    for (table, statement) in distribution(schema) {
        if done.contains(&table) {
            continue;
        }
        if copied.contains(&table.as_str()) && statement.starts_with("SELECT create_distributed_table") {
            run(&format!("SELECT undistribute_table('{table}')"))?;
        }
        run(&statement)?;
    }
    Ok(())
}

fn is_unknown_table(cause: &(dyn std::error::Error + 'static)) -> bool {
    let cause = cause.downcast_ref::<postgres::Error>();
    cause.is_some_and(|cause| cause.code() == Some(&SqlState::UNDEFINED_TABLE))
}

impl Connections {
    /// Begins a new epoch after the database was put back to an earlier time, so that every older cursor
    /// expires.
    ///
    /// `above` is an epoch that has existed but that the database does not know, because it was put back once
    /// before. An interrupted run must be repeated; `each` is called for every owner.
    pub fn begin_epoch(
        address: &Address,
        terms: &Terms,
        above: Option<u16>,
        now: Timestamp,
        each: &mut dyn FnMut(u64),
    ) -> Result<(u16, u64), OpenError> {
        let failed = |error| OpenError::database(address, &error);
        let connections = Self::open(address, terms)?;
        let epoch = connections.next_epoch(above.unwrap_or(0), now).map_err(failed)?;
        let (mut last, mut owners) = (None, 0);
        loop {
            let page = Owners::page(&connections, last, 1_000).map_err(failed)?;
            for owner in &page {
                connections.begin_epoch_of(*owner, epoch).map_err(failed)?;
                owners += 1;
                each(owners);
            }
            let Some(end) = page.last() else {
                Self::note_signs(address, terms)?;
                return Ok((epoch, owners));
            };
            last = Some(*end);
        }
    }

    fn next_epoch(&self, above: u16, now: Timestamp) -> StorageResult<u16> {
        self.with_retry(|session| {
            let transaction = session.begin(Purpose::Write)?;
            let row = transaction.session.row(EPOCH, &[])?;
            let last = row.map_or(Ok(0), |row| row.try_get::<_, i64>(0)).map_err(failed)?;
            let epoch = Version::epoch_after(last.cast_unsigned().max(above.into()), now);
            let epoch = epoch.map_err(|error| StorageError::Engine(error.into()))?;
            transaction.session.execute(SET_EPOCH, &[(&i64::from(epoch), Type::INT8)])?;
            transaction.commit()?;
            Ok(epoch)
        })
    }

    fn begin_epoch_of(&self, owner: Owner, epoch: u16) -> StorageResult<()> {
        let first = Version::first(epoch).0.cast_signed();
        self.with_retry(|session| {
            let transaction = session.begin(Purpose::Write)?;
            let fences = i64::from(epoch) << 32;
            let params: [Param<'_>; 3] =
                [(&owner.0, Type::UUID), (&first, Type::INT8), (&fences, Type::INT8)];
            if transaction.session.execute(BEGIN_EPOCH, &params)? > 0 {
                FORGET.iter().try_for_each(|sql| transaction.session.execute(sql, &params[..1]).map(drop))?;
            }
            transaction.commit()
        })
    }
}
