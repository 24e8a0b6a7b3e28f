//! The form of an export: the lines around the rows of a user's owners.
//!
//! The first line is the account with the declared tables, and begins the rows of the owner of requests that name none.
//! Each other owner begins with a line of its own. An owner ends with the last line of its feed, which has `op` `end`, or
//! with a line that says that the user is no member of it. The account's line has the number of owners, by which a reader
//! knows whether the export is whole.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::model::{Owner, Precision, Timestamp};
use crate::schema::{Column, Schema};
use crate::storage::Membership;
use crate::storage::accounts::{Device, User};

/// The account of an export.
#[derive(Debug)]
pub struct Account<'a> {
    /// The user's id.
    pub user: Uuid,
    /// The owner of requests that name none: its rows come first.
    pub owner: Owner,
    /// The user, if this server manages the accounts.
    pub known: Option<&'a User>,
    /// The devices that are signed in.
    pub devices: &'a [Device],
}

/// Puts the owner of requests that name none before the others; returns it if the user is a member of it.
pub fn take_first(owners: &mut Vec<Membership>, first: Owner) -> Option<Membership> {
    let place = owners.iter().position(|one| one.owner == first)?;
    Some(owners.remove(place))
}

/// The first line: the account, its first owner, and the declared tables.
///
/// - `first`: the first owner; `None` if the user is no member of it.
/// - `others`: how many owners follow it.
pub fn account_line(
    schema: &Schema,
    account: &Account<'_>,
    first: Option<&Membership>,
    others: usize,
) -> Value {
    let devices = account.devices.iter().map(|device| {
        json!({ "device_id": device.id, "device": device.name, "created_at": time_text(device.created_at) })
    });
    json!({
        "op": "account",
        "user": account.user,
        "owner": account.owner,
        "name": first.map(|one| one.name.as_str()),
        "role": first.map(|one| one.role),
        "owners": others + 1,
        "email": account.known.map(|user| &user.email),
        "created_at": account.known.map(|user| time_text(user.created_at)),
        "devices": devices.collect::<Vec<_>>(),
        "tables": tables_of(schema),
    })
}

/// The line before the rows of another owner.
pub fn owner_line(one: &Membership) -> Value {
    json!({ "op": "owner", "owner": one.owner, "name": one.name, "role": one.role, "home": one.is_home })
}

/// The line that ends an owner of which the user is no member: no row follows, whether or not some came before.
pub fn left_line(owner: Owner) -> Value {
    json!({ "op": "left", "owner": owner })
}

/// The declared tables, parents before the tables that refer to them.
pub fn tables_of(schema: &Schema) -> Vec<Value> {
    let column = |column: &Column| {
        json!({
            "name": column.name,
            "type": column.kind.name(),
            "required": column.required,
            "references": column.references.map(|table| &schema.at(table).name),
        })
    };
    let tables = schema.parents_first().iter().map(|table| schema.at(*table));
    tables
        .map(|table| {
            let columns: Vec<_> = table.columns.iter().map(column).collect();
            json!({ "name": table.name, "key": table.key, "columns": columns })
        })
        .collect()
}

fn time_text(at: Timestamp) -> String {
    at.format(Precision::Milliseconds).to_string()
}
