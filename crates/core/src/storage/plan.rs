//! What makes a database fit a schema: the application's tables are created and changed without losing data.
//! The plan is the same for every engine; the engine writes it as SQL.

use std::collections::{BTreeMap, HashMap};

use crate::model::{Precision, Timestamp};
use crate::schema::{Column, Schema, Table, TableId};

/// The changes that make a database fit a schema, or why none can without losing data.
#[derive(Clone, Debug)]
pub struct Plan {
    schema: Schema,
    steps: Vec<Step>,
    refusals: Vec<String>,
}

#[derive(Clone, Debug)]
struct Step {
    /// The same steps for people.
    lines: Vec<String>,
    changes: Vec<Change>,
}

/// One change of a database.
#[derive(Clone, Debug)]
pub enum Change {
    /// Creates the table.
    Create(TableId),
    /// Adds columns to the table, by index; none of them refers to another table.
    AddColumns(TableId, Vec<usize>),
    /// Adds columns to the table, by index, and the declared references.
    Refer(TableId, Vec<usize>),
    /// Fills in a column's default: everywhere, or where it is empty.
    Fill {
        /// The table.
        table: TableId,
        /// The column's index in the table.
        column: usize,
        /// Whether rows with a value keep it.
        only_empty: bool,
    },
    /// Stores a declaration, for the next comparison.
    Record(Record),
}

/// The stored declaration of one column, including the key and the owner column. A record without a table
/// stores how times are kept. SQL types are less precise: to SQLite a boolean is an integer.
#[derive(Clone, Debug)]
pub struct Record {
    /// The table's name.
    pub table: String,
    /// The column's name, or the name of another record of the table.
    pub name: String,
    /// The column's type, as the schema file writes it.
    pub kind: String,
    /// Whether it must have a value.
    pub required: bool,
}

impl Record {
    fn of(table: &Table, column: &Column) -> Self {
        Self::named(&table.name, &column.name, column.kind.name(), column.required)
    }

    fn named(table: &str, name: &str, kind: &str, required: bool) -> Self {
        Self { table: table.into(), name: name.into(), kind: kind.into(), required }
    }
}

impl From<Record> for Change {
    fn from(record: Record) -> Self {
        Self::Record(record)
    }
}

/// The types of records that are not columns of the wire.
const OWNER: &str = "owner";
const KEY: &str = "key";
/// The key of times in the schema file.
const PRECISION: &str = "timestamps";

/// A database as a plan needs it: its contents, and how to change it.
pub trait Database {
    /// The database's error.
    type Error;

    /// Whether names that differ in case are two names.
    const CASE_MATTERS: bool;

    /// Whether new references require that the table is created anew, which columns of other programs would
    /// not survive.
    const REFERENCES_MAKE_ANEW: bool;

    /// All stored declarations of columns.
    fn records(&mut self) -> Result<Vec<Record>, Self::Error>;

    /// The kind and the exact name of an object, found in any case.
    fn object(&mut self, name: &str) -> Result<Option<(String, String)>, Self::Error>;

    /// The columns and references of one table.
    fn held(&mut self, table: &Table) -> Result<Held, Self::Error>;

    /// How many rows a `FROM` finds.
    fn count(&mut self, from: &str) -> Result<i64, Self::Error>;

    /// Makes one change.
    fn change(&mut self, change: &Change, schema: &Schema, now: Timestamp) -> Result<(), Self::Error>;

    /// Runs all of it in one transaction.
    fn whole(
        &mut self,
        work: &mut dyn FnMut(&mut Self) -> Result<(), Self::Error>,
    ) -> Result<(), Self::Error>;

    /// The error of a plan that must not be carried out.
    fn refused(lines: &[String]) -> Self::Error;
}

/// The columns and references that a database has of one table.
pub struct Held {
    /// Every column, the owner's and the key among them, in the table's own order.
    pub columns: Vec<String>,
    /// By column name in lower case: the table it refers to.
    pub references: HashMap<String, String>,
}

impl Held {
    fn has(&self, name: &str) -> bool {
        self.spelling(name).is_some()
    }

    fn spelling(&self, name: &str) -> Option<&String> {
        self.columns.iter().find(|column| column.eq_ignore_ascii_case(name))
    }
}

/// The stored declarations of one table.
#[derive(Default)]
pub struct Records {
    table: String,
    /// By column name in lower case: its type, and whether it was required.
    columns: HashMap<String, (String, bool)>,
    owner: String,
    key: String,
}

impl Records {
    /// The records by table name in lower case, since names are compared as SQL does.
    pub fn by_table(records: Vec<Record>) -> BTreeMap<String, Self> {
        let mut known = BTreeMap::<String, Self>::new();
        for Record { table, name, kind, required } in records {
            let records = known.entry(table.to_ascii_lowercase()).or_default();
            match kind.as_str() {
                OWNER => records.owner = name,
                KEY => records.key = name,
                _ => {
                    records.columns.insert(name.to_ascii_lowercase(), (kind, required));
                }
            }
            records.table = table;
        }
        known
    }

    /// The type that a column was declared with before, and whether it was required.
    pub fn column(&self, name: &str) -> Option<&(String, bool)> {
        self.columns.get(&name.to_ascii_lowercase())
    }

    /// Whether the column was declared before with its present type.
    fn agrees(&self, column: &Column) -> bool {
        self.column(&column.name).is_some_and(|(kind, _)| kind == column.kind.name())
    }

    /// Whether the column is the key or the owner column.
    fn is_own(&self, name: &str) -> bool {
        name.eq_ignore_ascii_case(&self.owner) || name.eq_ignore_ascii_case(&self.key)
    }

    /// Whether every row had to have a value.
    fn required(&self, column: &Column) -> bool {
        self.column(&column.name).is_some_and(|(_, required)| *required)
    }
}

/// Quotes a name for SQL, whatever it contains.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Plan {
    /// Whether the database fits already.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.refusals.is_empty()
    }

    /// Every difference that cannot be resolved without losing data, one line each, with its correction.
    pub fn refusals(&self) -> &[String] {
        &self.refusals
    }

    /// The plan for people: what would be created, added, filled in and refused, one line each.
    pub fn describe(&self) -> Vec<String> {
        let done = self.steps.iter().flat_map(|step| step.lines.iter().cloned());
        let refused = self.refusals.iter().map(|line| format!("refused: {line}"));
        done.chain(refused).collect()
    }

    /// Carries the plan out, all of it or nothing.
    ///
    /// - `now`: the value of existing rows when a column with the default `now` is added.
    /// - Errors: the database's own. A plan with refusals is not carried out.
    pub fn carry_out<D: Database>(&self, database: &mut D, now: Timestamp) -> Result<(), D::Error> {
        if !self.refusals.is_empty() {
            return Err(D::refused(&self.refusals));
        }
        if self.steps.is_empty() {
            return Ok(());
        }
        database.whole(&mut |database| {
            let mut changes = self.steps.iter().flat_map(|step| &step.changes);
            changes.try_for_each(|change| database.change(change, &self.schema, now))
        })
    }

    fn step(&mut self, lines: Vec<String>, changes: Vec<Change>) {
        self.steps.push(Step { lines, changes });
    }

    fn refuse(&mut self, line: String) {
        self.refusals.push(line);
    }
}

/// Compares the database with the schema. Reads only.
pub fn compare<D: Database>(database: &mut D, schema: &Schema) -> Result<Plan, D::Error> {
    let mut plan = Plan { schema: schema.clone(), steps: Vec::new(), refusals: Vec::new() };
    let mut known = Records::by_table(database.records()?);
    compare_precision(&mut plan, known.remove(""));
    for id in schema.parents_first() {
        let table = schema.at(*id);
        let found = database.object(&table.name)?;
        match (known.remove(&table.name.to_ascii_lowercase()), found) {
            (None, None) => create(&mut plan, table),
            (None, Some((kind, name))) => plan.refuse(format!(
                "{}: the database has a {kind} {name:?} that rollcall did not make; rename one of the two",
                table.name
            )),
            (Some(records), _) if records.table != table.name => plan.refuse(format!(
                "{}: the table is spelt {:?} in the database; spell it so",
                table.name, records.table
            )),
            (Some(_), None) => plan.refuse(format!(
                "{}: the table is gone from the database; restore it from a backup",
                table.name
            )),
            (Some(records), Some(_)) => fit(&mut plan, database, schema, table, &records)?,
        }
    }
    for records in known.values() {
        if database.object(&records.table)?.is_some() {
            plan.refuse(format!(
                "{}: the database has this table and the schema does not declare it; declare it again, or \
                 drop the table by hand",
                records.table
            ));
        }
    }
    Ok(plan)
}

/// Times become finer without loss. If they were truncated, no row would have the time that devices know.
fn compare_precision(plan: &mut Plan, records: Option<Records>) {
    let is = match plan.schema.precision {
        Precision::Milliseconds => "milliseconds",
        Precision::Seconds => "seconds",
    };
    let was = records.as_ref().and_then(|records| records.column(PRECISION)).map(|(was, _)| was.as_str());
    let line = match was {
        Some(was) if was == is => return,
        Some("milliseconds") => {
            return plan.refuse(
                "timestamps: the database keeps milliseconds and the schema says seconds, which would cut \
                 times that devices know; write \"milliseconds\""
                    .to_owned(),
            );
        }
        Some(_) => Some(format!("times are kept in {is} from now on")),
        None => None,
    };
    plan.step(line.into_iter().collect(), vec![Record::named("", PRECISION, is, false).into()]);
}

fn create(plan: &mut Plan, table: &Table) {
    let mut changes = vec![
        Change::Create(table.id),
        Record::named(&table.name, &table.owner_column, OWNER, true).into(),
        Record::named(&table.name, &table.key, KEY, true).into(),
    ];
    changes.extend(table.columns.iter().map(|column| Change::Record(Record::of(table, column))));
    plan.step(vec![format!("create table {}", table.name)], changes);
}

/// Plans what an existing table of rollcall needs now.
fn fit<D: Database>(
    plan: &mut Plan,
    database: &mut D,
    schema: &Schema,
    table: &Table,
    records: &Records,
) -> Result<(), D::Error> {
    let refused_before = plan.refusals.len();
    for (what, was, is) in [(OWNER, &records.owner, &table.owner_column), (KEY, &records.key, &table.key)] {
        if !was.eq_ignore_ascii_case(is) {
            plan.refuse(format!(
                "{}: the {what} column is {was:?} in the database and {is:?} in the schema; name it {was:?}",
                table.name
            ));
        }
    }
    let held = database.held(table)?;
    if D::CASE_MATTERS {
        compare_spelling(plan, table, &held);
    }
    refuse_lost_columns(plan, table, records, &held);
    compare_types(plan, table, records, &held);
    let columns = compare_columns(plan, database, table, records, &held)?;
    let references = compare_references(plan, database, schema, table, records, &held)?;
    let refers = !references.is_empty()
        || columns.added.iter().any(|column| table.columns[*column].references.is_some());
    let alien = held.columns.iter().find(|name| !records.is_own(name) && records.column(name).is_none());
    if let (true, Some(alien)) = (refers && D::REFERENCES_MAKE_ANEW, alien) {
        plan.refuse(format!(
            "{}: to change its references the table must be made anew, and its column {alien:?} is not \
             rollcall's; drop that column, or leave the references as they were",
            table.name
        ));
    }
    let lines: Vec<_> = columns.lines.into_iter().chain(references).collect();
    if plan.refusals.len() > refused_before || lines.is_empty() {
        return Ok(());
    }
    let mut changes = match (refers, columns.added.is_empty()) {
        (true, _) => vec![Change::Refer(table.id, columns.added)],
        (false, false) => vec![Change::AddColumns(table.id, columns.added)],
        (false, true) => Vec::new(),
    };
    changes.extend(columns.after);
    plan.step(lines, changes);
    Ok(())
}

/// The changes of a table's columns.
#[derive(Default)]
struct Columns {
    lines: Vec<String>,
    /// By index.
    added: Vec<usize>,
    /// The changes that follow after the columns exist.
    after: Vec<Change>,
}

/// Plans what declared columns need: to be added, filled in, or recorded differently.
fn compare_columns<D: Database>(
    plan: &mut Plan,
    database: &mut D,
    table: &Table,
    records: &Records,
    held: &Held,
) -> Result<Columns, D::Error> {
    let mut columns = Columns::default();
    for (index, column) in table.columns.iter().enumerate() {
        let at = format!("{}.{}", table.name, column.name);
        if held.has(&column.name) && !records.agrees(column) {
            continue; // refused already
        }
        let (mut line, empty, only_empty) = if !held.has(&column.name) {
            columns.added.push(index);
            let line = format!("add column {at} ({})", column.kind.name());
            (line, database.count(&quoted(&table.name))?, false)
        } else if records.required(column) == column.required {
            continue;
        } else if column.required {
            let empty = format!("{} WHERE {} IS NULL", quoted(&table.name), quoted(&column.name));
            (format!("{at} is required now"), database.count(&empty)?, true)
        } else {
            (format!("{at} is no longer required"), 0, false)
        };
        match &column.default {
            Some(_) if empty > 0 => {
                line.push_str(&format!(", its default filled in for {}", rows(empty)));
                columns.after.push(Change::Fill { table: table.id, column: index, only_empty });
            }
            None if empty > 0 && column.required => plan.refuse(format!(
                "{at}: required, but {} no value and there is no default; give it a default, or leave \
                 out required",
                if empty == 1 { "1 row holds".to_owned() } else { format!("{empty} rows hold") }
            )),
            _ => {}
        }
        columns.after.push(Record::of(table, column).into());
        columns.lines.push(line);
    }
    for name in &table.retired {
        // Rows may now lack it. If it becomes required again, they have to be counted.
        if let Some((kind, true)) = records.column(name) {
            columns.after.push(Record::named(&table.name, name, kind, false).into());
            columns.lines.push(format!("{}.{name} is no longer required, being retired", table.name));
        }
    }
    Ok(columns)
}

/// Refuses columns of the database that the schema no longer mentions.
fn refuse_lost_columns(plan: &mut Plan, table: &Table, records: &Records, held: &Held) {
    for name in &held.columns {
        let same = |other: &String| other.eq_ignore_ascii_case(name);
        let declared = table.columns.iter().any(|column| same(&column.name));
        if !declared && !records.is_own(name) && !table.retired.iter().any(same) {
            plan.refuse(format!(
                "{}.{name}: the database has this column and the schema neither declares nor retires it; \
                 declare it, or list it in retired",
                table.name
            ));
        }
    }
}

/// Refuses columns whose stored type is not the declared one.
fn compare_types(plan: &mut Plan, table: &Table, records: &Records, held: &Held) {
    let compared = |column: &&Column| held.has(&column.name) && !records.is_own(&column.name);
    for column in table.columns.iter().filter(compared) {
        let (at, is) = (format!("{}.{}", table.name, column.name), column.kind.name());
        match records.column(&column.name) {
            None => plan.refuse(format!(
                "{at}: the database has a column of this name that rollcall did not make; rename one of the \
                 two"
            )),
            Some((was, _)) if was != is => plan.refuse(format!(
                "{at}: the database holds {was}, the schema says {is}; declare it as {was}, or retire it and \
                 give the new column another name"
            )),
            Some(_) => {}
        }
    }
}

/// Refuses columns whose names differ in case, where case matters to the database.
fn compare_spelling(plan: &mut Plan, table: &Table, held: &Held) {
    let names = table.columns.iter().map(|column| &column.name).chain([&table.key, &table.owner_column]);
    for name in names {
        if let Some(spelling) = held.spelling(name).filter(|spelling| *spelling != name) {
            plan.refuse(format!(
                "{}.{name}: the column is spelt {spelling:?} in the database; spell it so",
                table.name
            ));
        }
    }
}

/// Lists the references of existing columns that change; refuses those that rows violate.
fn compare_references<D: Database>(
    plan: &mut Plan,
    database: &mut D,
    schema: &Schema,
    table: &Table,
    records: &Records,
    held: &Held,
) -> Result<Vec<String>, D::Error> {
    let mut changed = Vec::new();
    let mut gone = held.references.clone();
    for (at, to) in table.references() {
        let column = &table.columns[at];
        let was = gone.remove(&column.name.to_ascii_lowercase());
        let parent = schema.at(to);
        let refused = !records.agrees(column) || !held.has(&table.owner_column);
        if !held.has(&column.name)
            || refused
            || was.as_ref().is_some_and(|was| was.eq_ignore_ascii_case(&parent.name))
        {
            continue;
        }
        let (name, reference) = (quoted(&table.name), quoted(&column.name));
        let mut lost = format!("{name} c WHERE c.{reference} IS NOT NULL");
        let held_parent = database.held(parent)?;
        if held_parent.has(&parent.owner_column) && held_parent.has(&parent.key) {
            lost.push_str(&format!(
                " AND NOT EXISTS (SELECT 1 FROM {} p WHERE p.{} = c.{} AND p.{} = c.{reference})",
                quoted(&parent.name),
                quoted(&parent.owner_column),
                quoted(&table.owner_column),
                quoted(&parent.key),
            ));
        } else if !held_parent.columns.is_empty() {
            continue; // the parent is refused
        }
        let lost = database.count(&lost)?;
        let at = format!("{}.{}", table.name, column.name);
        if lost > 0 {
            plan.refuse(format!(
                "{at}: {} to no row of {:?}; correct them first, or leave the reference out",
                if lost == 1 { "1 row refers".to_owned() } else { format!("{lost} rows refer") },
                parent.name
            ));
        }
        changed.push(format!("{at} refers to {} now", parent.name));
    }
    let mut gone: Vec<_> = gone.into_iter().collect();
    gone.sort();
    changed.extend(
        gone.into_iter().map(|(column, to)| format!("{}.{column} no longer refers to {to}", table.name)),
    );
    Ok(changed)
}

fn rows(count: i64) -> String {
    if count == 1 { "1 row".to_owned() } else { format!("{count} rows") }
}
