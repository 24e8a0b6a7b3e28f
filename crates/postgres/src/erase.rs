//! Erases an owner: every row that has it, a bounded number at a time.

use postgres::types::Type;
use uuid::Uuid;

use super::session::{Param, Session};
use super::statements;
use super::txn;
use rollcall_core::model::Owner;
use rollcall_core::schema::Schema;
use rollcall_core::storage::StorageResult;
use rollcall_core::storage::plan::quoted;

/// rollcall's own tables of an owner's rows and the rest of each key.
const OWN: [(&str, &str); 11] = [
    ("rollcall_answer", "device, key"),
    ("rollcall_ack", "device"),
    ("rollcall_installation", "device"),
    ("rollcall_delete_window", "device, tbl"),
    ("rollcall_conflict", "id"),
    ("rollcall_history", "tbl, key, version"),
    ("rollcall_ledger", "tbl, key"),
    ("rollcall_digest", "tbl"),
    ("rollcall_day", "day"),
    ("rollcall_member", "user_id"),
    ("rollcall_invitation", "id"),
];

/// The counts of an owner that has no rows any more.
const EMPTY_OWNER: &str =
    "UPDATE rollcall_owner SET live_rows = 0, live_bytes = 0, past_version = NULL WHERE owner = $1";

/// Removes at most `rows_max` rows of an owner; returns whether some may be left. Within a transaction.
///
/// References are cleared first: rows of two tables may refer to each other in a circle.
pub(super) fn erase(
    session: &mut Session,
    schema: &Schema,
    owner: Owner,
    rows_max: usize,
) -> StorageResult<bool> {
    if txn::load_owner(session, owner, statements::LOCK_OWNER)?.is_none() {
        return Ok(false);
    }
    let mut left = i64::try_from(rows_max).unwrap_or(i64::MAX);
    for sql in statements_of(schema) {
        let params: [Param<'_>; 2] = [(&owner.0, Type::UUID), (&left, Type::INT8)];
        left -= session.execute(&sql, &params)?.cast_signed();
        if left <= 0 {
            return Ok(true);
        }
    }
    session.execute(EMPTY_OWNER, &[(&owner.0, Type::UUID)])?;
    Ok(false)
}

/// What removes an owner's rows. Parameters of each: owner, most rows.
fn statements_of(schema: &Schema) -> Vec<String> {
    let mut all = Vec::new();
    for table in schema.tables() {
        let (name, owner, key) = (quoted(&table.name), quoted(&table.owner_column), quoted(&table.key));
        for (at, _) in table.references() {
            let column = quoted(&table.columns[at].name);
            all.push(format!(
                "UPDATE {name} SET {column} = NULL WHERE {owner} = $1 AND {key} IN \
                 (SELECT {key} FROM {name} WHERE {owner} = $1 AND {column} IS NOT NULL LIMIT $2)"
            ));
        }
    }
    for table in schema.tables() {
        let (name, owner, key) = (quoted(&table.name), quoted(&table.owner_column), quoted(&table.key));
        all.push(format!(
            "DELETE FROM {name} WHERE {owner} = $1 AND {key} IN \
             (SELECT {key} FROM {name} WHERE {owner} = $1 LIMIT $2)"
        ));
    }
    all.extend(OWN.iter().map(|(name, key)| {
        format!(
            "DELETE FROM {name} WHERE owner = $1 AND ({key}) IN \
             (SELECT {key} FROM {name} WHERE owner = $1 LIMIT $2)"
        )
    }));
    all
}

/// Remembers the token of a device. Parameters: hash, until when.
pub(super) const KEEP_TOKEN: &str =
    "INSERT INTO rollcall_gone (token_hash, until) VALUES ($1, $2) ON CONFLICT DO NOTHING";
/// What the devices of a user call themselves for an owner. Parameters: owner, user.
pub(super) const INSTALLATIONS: &str =
    "SELECT device FROM rollcall_installation WHERE owner = $1 AND user_id = $2";
/// What is stored of devices for an owner beside the rows. Parameters: owner, devices.
pub(super) const FORGET_DEVICES: [&str; 4] = [
    "DELETE FROM rollcall_ack WHERE owner = $1 AND device = ANY($2)",
    "DELETE FROM rollcall_answer WHERE owner = $1 AND device = ANY($2)",
    "DELETE FROM rollcall_installation WHERE owner = $1 AND device = ANY($2)",
    "DELETE FROM rollcall_delete_window WHERE owner = $1 AND device = ANY($2)",
];
pub(super) const IS_GONE: &str = "SELECT 1 FROM rollcall_gone WHERE token_hash = $1 AND until > $2";
pub(super) const FORGET_GONE: &str = "DELETE FROM rollcall_gone WHERE until <= $1";
pub(super) const ERASURES: &str = "SELECT owner, erased_at FROM rollcall_owner WHERE erased_at IS NOT NULL AND owner > $1 ORDER BY owner LIMIT $2";
pub(super) const END_ERASURE: &str = "DELETE FROM rollcall_owner WHERE owner = $1 AND erased_at IS NOT NULL";

/// Removes what is stored of devices for an owner beside the rows.
pub(super) fn forget_devices(session: &mut Session, owner: Owner, devices: &Vec<Uuid>) -> StorageResult<()> {
    let params: [Param<'_>; 2] = [(&owner.0, Type::UUID), (devices, Type::UUID_ARRAY)];
    FORGET_DEVICES.iter().try_for_each(|sql| session.execute(sql, &params).map(drop))
}
