//! All data of a deployment, in a form that either engine reads and writes: every table row by row, as
//! values.

use super::plan::{Database, Record};
use super::{Outcome, OwnerState, StorageResult};
use crate::model::{Fence, Owner, Value};
use crate::schema::{ColumnType, Schema};

/// The unit of a copy: what one transaction copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Users, devices, and the members of all owners.
    Accounts,
    /// Everything that is stored for one owner.
    Owner(Owner),
}

/// One SQL table, as every engine has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Its name.
    pub table: String,
    /// The column with a row's owner; accounts have none.
    pub owner: Option<String>,
    /// The columns that are copied, and their types.
    pub columns: Vec<(String, ColumnType)>,
}

/// The tables of a deployment, parents first.
pub struct Sections {
    accounts: Vec<Section>,
    owned: Vec<Section>,
    /// How many of an owner's tables are rollcall's own.
    own: usize,
}

use ColumnType::{Blob, Boolean, Integer, Text, Uuid};

/// Users and devices, and who is a member of which owner.
const ACCOUNTS: [(&str, &[(&str, ColumnType)]); 4] = [
    (
        "rollcall_user",
        &[
            ("id", Uuid),
            ("email", Text),
            ("password_hash", Text),
            ("owner", Uuid),
            ("created_at", Integer),
            ("verified_at", Integer),
            ("home", Boolean),
        ],
    ),
    (
        "rollcall_device",
        &[
            ("id", Uuid),
            ("user_id", Uuid),
            ("name", Text),
            ("token_hash", Blob),
            ("created_at", Integer),
            ("expires_at", Integer),
            ("seen_at", Integer),
            ("seen_from", Text),
        ],
    ),
    (
        "rollcall_member",
        &[
            ("owner", Uuid),
            ("user_id", Uuid),
            ("role", Integer),
            ("since", Integer),
            ("name", Text),
            ("joined_at", Integer),
        ],
    ),
    (
        "rollcall_invitation",
        &[
            ("owner", Uuid),
            ("id", Uuid),
            ("code", Blob),
            ("role", Integer),
            ("made_by", Uuid),
            ("made_at", Integer),
            ("expires_at", Integer),
            ("uses_left", Integer),
        ],
    ),
];

/// What rollcall stores for an owner in addition to the application's rows; the owner itself comes first.
const OWN: [(&str, &[(&str, ColumnType)]); 10] = [
    (
        "rollcall_owner",
        &[
            ("version", Integer),
            ("horizon", Integer),
            ("live_rows", Integer),
            ("live_bytes", Integer),
            ("seed", Blob),
            ("shown_ahead", Integer),
            ("past_tombstones", Integer),
            ("past_history", Integer),
            ("past_conflicts", Integer),
            ("past_answers", Integer),
            ("past_version", Integer),
            ("name", Text),
            ("members_at", Integer),
            ("public", Boolean),
            ("erased_at", Integer),
            ("due_at", Integer),
        ],
    ),
    (
        "rollcall_ledger",
        &[
            ("tbl", Integer),
            ("key", Uuid),
            ("version", Integer),
            ("created", Integer),
            ("last_update", Integer),
            ("deleted", Boolean),
            ("made_by", Uuid),
            ("changed_by", Uuid),
            ("lives", Blob),
            ("writers", Blob),
            ("made_at", Integer),
            ("claimed_at", Integer),
            ("row_base", Integer),
            ("base", Integer),
        ],
    ),
    ("rollcall_digest", &[("tbl", Integer), ("live_rows", Integer), ("root", Integer)]),
    ("rollcall_day", &[("day", Integer), ("version", Integer)]),
    (
        "rollcall_history",
        &[
            ("tbl", Integer),
            ("key", Uuid),
            ("version", Integer),
            ("last_update", Integer),
            ("changed_by", Uuid),
            ("columns", Text),
            ("made_at", Integer),
            ("claimed_at", Integer),
        ],
    ),
    (
        "rollcall_conflict",
        &[
            ("id", Uuid),
            ("at", Integer),
            ("tbl", Integer),
            ("key", Uuid),
            ("policy", Text),
            ("resolution", Text),
            ("base", Text),
            ("stored", Text),
            ("stored_at", Integer),
            ("stored_by", Uuid),
            ("incoming", Text),
            ("incoming_at", Integer),
            ("incoming_by", Uuid),
            ("restored_at", Integer),
            ("stored_made_at", Integer),
        ],
    ),
    (
        "rollcall_answer",
        &[
            ("device", Uuid),
            ("key", Text),
            ("at", Integer),
            ("version", Integer),
            ("body_hash", Blob),
            ("body", Blob),
        ],
    ),
    ("rollcall_ack", &[("device", Uuid), ("version", Integer), ("at", Integer)]),
    (
        "rollcall_installation",
        &[
            ("device", Uuid),
            ("user_id", Uuid),
            ("token_device", Uuid),
            ("counter", Integer),
            ("seen_at", Integer),
        ],
    ),
    (
        "rollcall_delete_window",
        &[
            ("device", Uuid),
            ("tbl", Integer),
            ("began", Integer),
            ("version", Integer),
            ("live_rows", Integer),
            ("deletes", Integer),
        ],
    ),
];

impl Section {
    fn named(&(table, columns): &(&str, &[(&str, ColumnType)]), owner: Option<&str>) -> Self {
        let columns = columns.iter().map(|(name, kind)| ((*name).to_owned(), *kind));
        Self { table: table.to_owned(), owner: owner.map(str::to_owned), columns: columns.collect() }
    }
}

impl Sections {
    /// The tables of a deployment with that schema.
    pub fn of(schema: &Schema) -> Self {
        let own = OWN.iter().map(|table| Section::named(table, Some("owner")));
        let declared = schema.parents_first().iter().map(|id| {
            let table = schema.at(*id);
            let key = std::iter::once((table.key.clone(), Uuid));
            let columns = table.columns.iter().map(|column| (column.name.clone(), column.kind));
            Section {
                table: table.name.clone(),
                owner: Some(table.owner_column.clone()),
                columns: key.chain(columns).collect(),
            }
        });
        Self {
            accounts: ACCOUNTS.iter().map(|table| Section::named(table, None)).collect(),
            owned: own.chain(declared).collect(),
            own: OWN.len(),
        }
    }

    /// The tables of a part.
    pub fn of_part(&self, part: Part) -> &[Section] {
        match part {
            Part::Accounts => &self.accounts,
            Part::Owner(_) => &self.owned,
        }
    }

    /// Whether an owner's table at that index is one that the schema declares.
    pub fn is_declared(&self, part: Part, index: usize) -> bool {
        part != Part::Accounts && index >= self.own
    }
}

/// What is known of a deployment apart from its parts.
pub struct Deployment {
    /// The schema, with retired columns declared again, since the database still has them.
    pub schema: Schema,
    /// The epoch of its versions.
    pub epoch: i64,
    /// The numbers of tables in its ledger. The pages of a feed depend on them.
    pub tables: Vec<(i64, String)>,
    /// A fence above all that it has given out, or will within ten years.
    pub fence: Fence,
    /// Owners.
    pub owners: u64,
    /// Live rows of all owners.
    pub rows: u64,
}

/// Receives a row of the section at that index; returns whether to continue.
pub type RowSink<'a> = dyn FnMut(usize, &[Value]) -> bool + 'a;

/// Writes a row of the section at that index.
pub type RowPut<'a> = dyn FnMut(usize, &[Value]) -> StorageResult<()> + 'a;

/// Writes all rows of a part, section by section, and returns whether to commit them. It may be run again
/// from the start.
pub type RowsOf<'a> = &'a mut dyn FnMut(&mut RowPut<'_>) -> StorageResult<Outcome>;

/// A database whose data is read completely.
pub trait Whole {
    /// Owners after `after`, by id, at most `owners_max`.
    fn owners(&self, after: Option<Owner>, owners_max: usize) -> StorageResult<Vec<(Owner, OwnerState)>>;

    /// Calls `each` with the rows of a part, section by section, all of one snapshot, in no particular order
    /// within a section.
    fn read(&self, part: Part, each: &mut RowSink<'_>) -> StorageResult<()>;
}

/// A database that data is copied into.
pub trait Target: Whole {
    /// Replaces all rows of a part, in one transaction.
    ///
    /// `fence` is below the owner's next fence.
    fn replace(&self, part: Part, fence: Fence, rows: RowsOf<'_>) -> StorageResult<()>;
}

/// The schema with its retired columns declared again, each as it was.
///
/// Retired columns that were never declared belong to another program: they are left out, and returned by
/// name.
pub fn unretired<D: Database>(database: &mut D, schema: &Schema) -> Result<(Schema, Vec<String>), D::Error> {
    let records = database.records()?;
    let known = |table: &str, name: &str| {
        let same = |record: &&Record| {
            record.table.eq_ignore_ascii_case(table) && record.name.eq_ignore_ascii_case(name)
        };
        let record = records.iter().find(same)?;
        let kind = ColumnType::ALL.into_iter().find(|kind| kind.name() == record.kind)?;
        Some((record.name.clone(), kind))
    };
    let mut strange = Vec::new();
    for table in schema.tables().iter().filter(|table| !table.retired.is_empty()) {
        let held = database.held(table)?;
        for name in &table.retired {
            if held.columns.iter().any(|column| column.eq_ignore_ascii_case(name))
                && known(&table.name, name).is_none()
            {
                strange.push(format!("{}.{name}", table.name));
            }
        }
    }
    Ok((schema.unretired(known), strange))
}
