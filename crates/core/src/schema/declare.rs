//! Reads `schema.toml` into a [`Schema`]. The whole file is checked, and every fault is reported at once.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::names::{self, Taken};
use super::{Column, ColumnMerge, Policy, Schema, Table, TableId};
use crate::model::{Precision, Role};

/// Earlier states stored of a row: enough for devices that were away during a few edits.
const HISTORY_DEFAULT: usize = 4;
/// More would be an archive, and each state costs a write.
const HISTORY_MAX: usize = 100;

/// Most tables in a schema, and most columns in a table; SQLite itself stops at 2,000 columns.
const TABLES_MAX: usize = 1_000;
const COLUMNS_MAX: usize = 1_000;
const OWNER_COLUMN: &str = "_owner";

/// Why a schema file is refused: every fault, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaError {
    faults: Vec<Fault>,
}

impl SchemaError {
    /// Every fault; there is at least one.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for SchemaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.faults.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for SchemaError {}

/// One fault of a schema file, and how to correct it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line in the file, from 1.
    pub line: usize,
    /// `table.column` or `table`; empty for the file as a whole.
    pub at: String,
    /// The fault and its correction.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if !self.at.is_empty() {
            write!(f, "{}: ", self.at)?;
        }
        f.write_str(&self.what)
    }
}

impl Schema {
    /// Reads a schema file.
    ///
    /// - Errors: every fault at once. A file that is not TOML has this one fault.
    pub fn parse(text: &str) -> Result<Schema, SchemaError> {
        let mut reader = Reader { text, faults: Vec::new() };
        let (document, broken) = DeTable::parse_recoverable(text);
        for error in broken {
            let span = error.span().unwrap_or_default();
            let what = match error.message() {
                "duplicate key" => {
                    format!("{:?} is declared twice; keep one", text.get(span.clone()).unwrap_or_default())
                }
                other => format!("this is not TOML: {}", other.replace('\n', ", ")),
            };
            reader.fault(span, "", what);
        }
        if !reader.faults.is_empty() {
            return Err(reader.refuse());
        }
        let schema = reader.document(document.get_ref());
        if reader.faults.is_empty() { Ok(schema) } else { Err(reader.refuse()) }
    }
}

/// Reads a whole number from 0.
pub(super) fn whole_number(value: &Spanned<DeValue<'_>>) -> Option<usize> {
    let number = value.get_ref().as_integer()?;
    usize::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A name in the file, and its place.
pub(super) type Name<'t> = (&'t str, Range<usize>);

/// One table as the file declares it, before references are resolved.
struct Draft<'t> {
    table: Table,
    /// For each column, the name of the table that it refers to.
    references: Vec<Option<Name<'t>>>,
}

/// The members of a table that are checked once all are known.
#[derive(Default)]
struct TableParts<'t> {
    has_key: bool,
    write: Option<(Role, Range<usize>)>,
    columns: Option<&'t DeTable<'t>>,
    retired: Option<&'t DeArray<'t>>,
}

/// Reads the file and collects every fault.
pub(super) struct Reader<'t> {
    text: &'t str,
    faults: Vec<Fault>,
}

impl<'t> Reader<'t> {
    pub(super) fn fault(&mut self, span: Range<usize>, at: &str, what: impl Into<String>) {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        self.faults.push(Fault { line, at: at.to_owned(), what: what.into() });
    }

    fn refuse(mut self) -> SchemaError {
        self.faults.sort_by_key(|fault| fault.line);
        SchemaError { faults: self.faults }
    }

    fn document(&mut self, document: &'t DeTable<'t>) -> Schema {
        let mut precision = Precision::default();
        let mut owner_column = OWNER_COLUMN;
        let mut tables = None;
        for (name, value) in document {
            match name.get_ref().as_ref() {
                "timestamps" => match value.get_ref().as_str() {
                    Some("seconds") => precision = Precision::Seconds,
                    Some("milliseconds") => precision = Precision::Milliseconds,
                    _ => self.fault(value.span(), "timestamps", "write \"seconds\" or \"milliseconds\""),
                },
                "owner_column" => owner_column = self.owner_column("", value).unwrap_or(OWNER_COLUMN),
                "table" => match value.get_ref().as_table() {
                    Some(found) => tables = Some(found),
                    None => self.fault(value.span(), "table", "declare each table as [table.NAME]"),
                },
                other => self.fault(
                    name.span(),
                    "",
                    format!("unknown member {other:?}; a schema has timestamps, owner_column and table"),
                ),
            }
        }
        let mut drafts = Vec::new();
        let mut taken = Taken::default();
        for (name, value) in tables.into_iter().flatten() {
            if let Some(fault) = names::fault(name.get_ref()) {
                self.fault(name.span(), name.get_ref(), fault);
            }
            if let Err(first) = taken.take(name.get_ref(), "the table") {
                let what = format!("SQL does not tell this name from {first}; rename one of the two");
                self.fault(name.span(), name.get_ref(), what);
            }
            let Some(body) = value.get_ref().as_table() else {
                self.fault(name.span(), name.get_ref(), "declare the table as [table.NAME]");
                continue;
            };
            let id = TableId(drafts.len());
            drafts.push(self.table(id, (name.get_ref(), name.span()), body, owner_column, precision));
        }
        let declared = tables.map_or(0, |tables| tables.len());
        if declared == 0 && self.faults.is_empty() {
            self.fault(0..0, "", "no tables; declare at least one as [table.NAME]");
        }
        if declared > TABLES_MAX {
            self.fault(0..0, "", format!("{declared} tables; at most {TABLES_MAX} can be declared"));
        }
        self.resolve(&mut drafts);
        let parents_first = self.parents_first(&drafts);
        let tables: Vec<Table> = drafts.into_iter().map(|draft| draft.table).collect();
        let by_name = tables.iter().map(|table| (table.name.clone(), table.id)).collect();
        Schema { precision, tables, by_name, parents_first }
    }

    fn owner_column(&mut self, at: &str, value: &'t Spanned<DeValue<'t>>) -> Option<&'t str> {
        let Some(name) = value.get_ref().as_str() else {
            self.fault(value.span(), at, "owner_column: write the name of an SQL column");
            return None;
        };
        if let Some(fault) = names::owner_fault(name) {
            self.fault(value.span(), at, format!("owner_column: {fault}"));
        }
        Some(name)
    }

    fn table(
        &mut self,
        id: TableId,
        (name, span): Name<'t>,
        body: &'t DeTable<'t>,
        owner_column: &'t str,
        precision: Precision,
    ) -> Draft<'t> {
        let mut table = Table {
            id,
            name: name.to_owned(),
            key: String::new(),
            policy: Policy::default(),
            read: Role::Read,
            write: Role::Write,
            history: HISTORY_DEFAULT,
            owner_column: owner_column.to_owned(),
            columns: Vec::new(),
            retired: Vec::new(),
        };
        let mut parts = self.members(&mut table, name, body);
        if !parts.has_key {
            self.fault(span.clone(), name, "no key; name the key column with key = \"…\"");
        }
        self.writers(&mut table, name, parts.write.take());
        let mut taken = Taken::default();
        let _ = taken.take(&table.key, "the key");
        if let Err(first) = taken.take(&table.owner_column, "the owner column") {
            let what = format!("owner_column: {:?} is {first} too; choose another", table.owner_column);
            self.fault(span.clone(), name, what);
        }
        let mut references = Vec::new();
        for (column, value) in parts.columns.into_iter().flatten() {
            let column = (column.get_ref().as_ref(), column.span());
            let (column, to) = self.named_column(name, column, value, &mut taken, precision);
            table.columns.push(column);
            references.push(to);
        }
        if table.policy != Policy::Merge
            && let Some(column) = table.columns.iter().find(|column| column.merge != ColumnMerge::default())
        {
            let at = format!("{name}.{}", column.name);
            self.fault(span.clone(), &at, "merge: only a table with policy = \"merge\" merges columns");
        }
        if table.columns.len() > COLUMNS_MAX {
            let what = format!("{} columns; a table can have at most {COLUMNS_MAX}", table.columns.len());
            self.fault(span, name, what);
        }
        table.retired = self.retired(name, parts.retired, &mut taken);
        Draft { table, references }
    }

    /// Reads the members of a table that depend on nothing else into it, and returns the others.
    fn members(&mut self, table: &mut Table, name: &'t str, body: &'t DeTable<'t>) -> TableParts<'t> {
        let mut parts = TableParts::default();
        for (member, value) in body {
            match member.get_ref().as_ref() {
                "key" => {
                    parts.has_key = true;
                    match value.get_ref().as_str() {
                        Some(key) => {
                            table.key = key.to_owned();
                            if let Some(fault) = names::fault(key).or_else(|| names::key_fault(key)) {
                                self.fault(value.span(), name, format!("key: {fault}"));
                            }
                        }
                        None => self.fault(value.span(), name, "key: write the name of the key column"),
                    }
                }
                "policy" => table.policy = self.policy(name, value),
                "read" => table.read = self.role(name, "read", &Role::ALL, value).unwrap_or(table.read),
                "write" => {
                    let role = self.role(name, "write", &[Role::Write, Role::Manage], value);
                    parts.write = role.map(|role| (role, value.span()));
                }
                "history" => match whole_number(value) {
                    Some(states) if states <= HISTORY_MAX => table.history = states,
                    _ => {
                        let what = format!("history: write a whole number from 0 to {HISTORY_MAX}");
                        self.fault(value.span(), name, what);
                    }
                },
                "owner_column" => {
                    if let Some(own) = self.owner_column(name, value) {
                        table.owner_column = own.to_owned();
                    }
                }
                "retired" => match value.get_ref().as_array() {
                    Some(list) => parts.retired = Some(list),
                    None => self.fault(value.span(), name, "retired: write a list of column names"),
                },
                "columns" => match value.get_ref().as_table() {
                    Some(found) => parts.columns = Some(found),
                    None => {
                        self.fault(value.span(), name, "columns: declare them under [table.NAME.columns]")
                    }
                },
                other => self.fault(
                    member.span(),
                    name,
                    format!(
                        "unknown member {other:?}; a table has key, policy, read, write, history, \
                         owner_column, retired and columns"
                    ),
                ),
            }
        }
        parts
    }

    /// Who may change rows: only those who may read them.
    fn writers(&mut self, table: &mut Table, name: &str, declared: Option<(Role, Range<usize>)>) {
        match declared {
            Some((write, span)) if write < table.read => {
                let read = table.read.name();
                let what = format!("write: a table with read = {read:?} needs write = {read:?}");
                self.fault(span, name, what);
            }
            Some((write, _)) => table.write = write,
            None => table.write = table.write.max(table.read),
        }
    }

    fn policy(&mut self, name: &str, value: &Spanned<DeValue<'t>>) -> Policy {
        match value.get_ref().as_str() {
            Some("newest") => Policy::Newest,
            Some("server") => Policy::Server,
            Some("client") => Policy::Client,
            Some("merge") => Policy::Merge,
            Some("manual") => Policy::Manual,
            _ => {
                let what = "policy: write \"newest\", \"server\", \"client\", \"merge\" or \"manual\"";
                self.fault(value.span(), name, what);
                Policy::default()
            }
        }
    }

    /// Reads the least role that may do something with a table: one of `roles`.
    fn role(
        &mut self,
        name: &str,
        member: &str,
        roles: &[Role],
        value: &Spanned<DeValue<'t>>,
    ) -> Option<Role> {
        let named = value.get_ref().as_str().and_then(Role::named).filter(|role| roles.contains(role));
        if named.is_none() {
            let names: Vec<_> = roles.iter().map(|role| format!("\"{}\"", role.name())).collect();
            self.fault(value.span(), name, format!("{member}: write {}", names.join(" or ")));
        }
        named
    }

    /// Reads one column, whose name no other column of the table may have.
    fn named_column(
        &mut self,
        table: &str,
        column: Name<'t>,
        value: &'t Spanned<DeValue<'t>>,
        taken: &mut Taken,
        precision: Precision,
    ) -> (Column, Option<Name<'t>>) {
        let at = format!("{table}.{}", column.0);
        if let Some(fault) = names::fault(column.0) {
            self.fault(column.1.clone(), &at, fault);
        }
        if let Err(first) = taken.take(column.0, "the column") {
            let what = match first.starts_with("the key") {
                true => format!("{first} is a column already; leave it out of columns"),
                false => format!("SQL does not tell this name from {first}; rename one of the two"),
            };
            self.fault(column.1.clone(), &at, what);
        }
        self.column(&at, column, value, precision)
    }

    /// Reads the names of columns that a table no longer has.
    fn retired(&mut self, table: &str, list: Option<&'t DeArray<'t>>, taken: &mut Taken) -> Vec<String> {
        let mut retired = Vec::new();
        for item in list.into_iter().flatten() {
            match item.get_ref().as_str() {
                None | Some("") => self.fault(item.span(), table, "retired: write a list of column names"),
                Some(old) => match taken.take(old, "the retired column") {
                    Ok(()) => retired.push(old.to_owned()),
                    Err(first) => {
                        let what = format!("retired: {old:?} is {first} too; keep it in one place");
                        self.fault(item.span(), table, what);
                    }
                },
            }
        }
        retired
    }

    /// Resolves the names of references to table ids.
    fn resolve(&mut self, drafts: &mut [Draft<'t>]) {
        let ids: HashMap<String, (TableId, Role)> = drafts
            .iter()
            .map(|draft| (draft.table.name.clone(), (draft.table.id, draft.table.read)))
            .collect();
        for draft in drafts {
            for (column, to) in draft.table.columns.iter_mut().zip(&draft.references) {
                let Some((to, span)) = to else { continue };
                let what = match ids.get(*to) {
                    Some((parent, read)) => {
                        column.references = Some(*parent);
                        if *read <= draft.table.read {
                            continue;
                        }
                        let read = read.name();
                        format!(
                            "references: {to:?} has read = {read:?}, so this table needs it too: who reads a row \
                             must be able to read the row that it names"
                        )
                    }
                    None => format!("references: there is no table {to:?}; declare it or correct the name"),
                };
                let at = format!("{}.{}", draft.table.name, column.name);
                self.fault(span.clone(), &at, what);
            }
        }
    }

    /// Sorts the tables: each after those that it refers to, and otherwise in declared order.
    fn parents_first(&mut self, drafts: &[Draft<'t>]) -> Vec<TableId> {
        let mut order = Vec::with_capacity(drafts.len());
        let mut seen = vec![Seen::No; drafts.len()];
        for draft in drafts {
            self.visit(drafts, draft.table.id, &mut seen, &mut Vec::new(), &mut order);
        }
        order
    }

    fn visit(
        &mut self,
        drafts: &[Draft<'t>],
        id: TableId,
        seen: &mut [Seen],
        path: &mut Vec<String>,
        order: &mut Vec<TableId>,
    ) {
        if seen[id.0] != Seen::No {
            return;
        }
        seen[id.0] = Seen::Open;
        let draft = &drafts[id.0];
        for (column, to) in draft.table.references() {
            if to == id {
                continue; // a tree within one table
            }
            let at = format!("{}.{}", draft.table.name, draft.table.columns[column].name);
            path.push(at.clone());
            if seen[to.0] == Seen::Open {
                let parent = format!("{}.", drafts[to.0].table.name);
                let from = path.iter().position(|step| step.starts_with(&parent)).unwrap_or(0);
                let what = format!(
                    "references: the tables refer to each other in a circle, {} -> {}; drop one of these",
                    path[from..].join(" -> "),
                    drafts[to.0].table.name
                );
                let span = draft.references[column].as_ref().map(|(_, span)| span.clone());
                self.fault(span.unwrap_or_default(), &at, what);
            } else {
                self.visit(drafts, to, seen, path, order);
            }
            path.pop();
        }
        seen[id.0] = Seen::Done;
        order.push(id);
    }
}

/// How far the walk along the references has come with a table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    No,
    Open,
    Done,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::model::Value;
    use crate::schema::DefaultValue;

    #[test]
    fn who_reads_and_writes_a_table() {
        let roles = |members: &str| {
            let other = "[table.b]\nkey = \"id\"\nread = \"write\"\n";
            let schema = Schema::parse(&format!("[table.a]\nkey = \"id\"\n{members}\n{other}")).unwrap();
            let table = schema.table("a").unwrap();
            (table.read, table.write, Role::ALL.map(|role| schema.hidden_from(role)))
        };
        assert_eq!(roles(""), (Role::Read, Role::Write, [1, 0, 0]));
        assert_eq!(roles("read = \"write\""), (Role::Write, Role::Write, [2, 0, 0]));
        assert_eq!(roles("read = \"manage\""), (Role::Manage, Role::Manage, [2, 1, 0]));
        assert_eq!(roles("write = \"manage\""), (Role::Read, Role::Manage, [1, 0, 0]));
        assert_eq!(roles("read = \"write\"\nwrite = \"manage\""), (Role::Write, Role::Manage, [2, 0, 0]));
    }

    /// `fixtures/schema` has the faults; this test shows the tables of a valid file.
    #[test]
    fn a_good_file_becomes_tables() {
        let schema = Schema::parse(
            r#"
            timestamps = "seconds"
            [table.guests]
            key = "gid"
            policy = "server"
            retired = ["old one"]
            [table.guests.columns]
            zeta = "text"
            alpha = { type = "text", required = true, max_length = 5, default = "Änna" }
            party = { type = "uuid", references = "parties" }
            host = { type = "uuid", references = "guests" }
            born = { type = "date", default = 2013-05-01 }
            made = { type = "timestamp", default = "now" }
            seen = { type = "timestamp", default = 2013-05-01T15:42:50.343Z }
            paid = { type = "decimal", default = 12345678901234567.890 }
            tags = { type = "json", default = { b = [1], a = true } }
            [table.parties]
            key = "id"
            owner_column = "couple"
            "#,
        )
        .unwrap();
        assert_eq!(schema.precision, Precision::Seconds);
        let names: Vec<_> = schema.tables().iter().map(|table| table.name.as_str()).collect();
        assert_eq!(names, ["guests", "parties"]);
        let order: Vec<_> = schema.parents_first().iter().map(|id| id.index()).collect();
        assert_eq!(order, [1, 0]);
        let guests = schema.table("guests").unwrap();
        assert_eq!((guests.key.as_str(), guests.policy), ("gid", Policy::Server));
        assert_eq!(
            (guests.owner_column.as_str(), guests.retired.as_slice()),
            ("_owner", &["old one".to_owned()][..])
        );
        assert_eq!(schema.table("parties").unwrap().owner_column, "couple");
        let names: Vec<_> = guests.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["zeta", "alpha", "party", "host", "born", "made", "seen", "paid", "tags"]);
        let default = |name| guests.columns[guests.column(name).unwrap()].default.clone();
        let constant = |value| Some(DefaultValue::Constant(value));
        assert_eq!(default("zeta"), None);
        assert_eq!(default("alpha"), constant(Value::Text("Änna".into())));
        assert_eq!(default("born"), constant(Value::Date(jiff::civil::Date::constant(2013, 5, 1))));
        assert_eq!(default("made"), Some(DefaultValue::Now));
        let whole = crate::model::Timestamp::from_ms(1_367_422_970_000);
        assert_eq!(default("seen"), constant(Value::Timestamp(whole)));
        let paid = "12345678901234567.89".parse().unwrap();
        assert_eq!(default("paid"), constant(Value::Decimal(paid)));
        assert_eq!(default("tags"), constant(Value::Json(r#"{"a":true,"b":[1]}"#.into())));
        let to: Vec<_> = guests.references().map(|(at, id)| (at, id.index())).collect();
        assert_eq!(to, [(2, 1), (3, 0)]);
    }

    #[test]
    fn more_than_a_thousand_tables_or_columns_are_refused() {
        use std::fmt::Write as _;
        let mut many = String::new();
        for at in 0..=TABLES_MAX {
            writeln!(many, "[table.t{at}]\nkey = \"id\"").unwrap();
        }
        let fault = Schema::parse(&many).unwrap_err().to_string();
        assert_eq!(fault, "line 1: 1001 tables; at most 1000 can be declared");
        let mut wide = "[table.t]\nkey = \"id\"\n[table.t.columns]\n".to_owned();
        for at in 0..=COLUMNS_MAX {
            writeln!(wide, "c{at} = \"text\"").unwrap();
        }
        let fault = Schema::parse(&wide).unwrap_err().to_string();
        assert_eq!(fault, "line 1: t: 1001 columns; a table can have at most 1000");
    }

    #[test]
    fn a_thousand_tables_in_one_line_of_descent_are_fine() {
        use std::fmt::Write as _;
        let mut chain = String::new();
        for at in 0..999 {
            let next = at + 1;
            writeln!(chain, "[table.t{at}]\nkey = \"id\"").unwrap();
            writeln!(chain, "columns.up = {{ type = \"uuid\", references = \"t{next}\" }}").unwrap();
        }
        chain.push_str("[table.t999]\nkey = \"id\"\n");
        let order: Vec<_> =
            Schema::parse(&chain).unwrap().parents_first().iter().map(|id| id.index()).collect();
        assert!(order.iter().copied().eq((0..1000).rev()));
    }
}
