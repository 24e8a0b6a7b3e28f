//! The application's tables: made from the schema, made to fit it again when it changes, and never at
//! the price of data.

use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, params_from_iter};

use super::ddl::{self, quoted};
use super::held::{self, Held, KEY, OWNER, PRECISION, RECORD, Records, TABLE, count, object};
use crate::model::{Precision, Timestamp};
use crate::schema::{Column, ColumnType, DefaultValue, Schema, Table};

/// Holds a table's rows while it is made anew.
const COPY: &str = "\"rollcall_copy\"";

/// What makes a database fit a schema, or why nothing does without losing data.
#[derive(Clone, Debug)]
pub struct Plan {
    precision: Precision,
    steps: Vec<Step>,
    refusals: Vec<String>,
}

#[derive(Clone, Debug)]
struct Step {
    /// The step for people.
    lines: Vec<String>,
    statements: Vec<Statement>,
}

#[derive(Clone, Debug)]
struct Statement {
    sql: String,
    values: Vec<SqlValue>,
    /// Bound last: depends on when the plan is carried out.
    fill: Option<(ColumnType, DefaultValue)>,
}

impl Statement {
    fn plain(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), values: Vec::new(), fill: None }
    }

    fn record(table: &str, name: &str, kind: &str, required: bool) -> Self {
        let text = |text: &str| SqlValue::Text(text.to_owned());
        let values = vec![text(table), text(name), text(kind), SqlValue::Integer(i64::from(required))];
        Self { sql: RECORD.to_owned(), values, fill: None }
    }

    fn record_column(table: &Table, column: &Column) -> Self {
        Self::record(&table.name, &column.name, column.kind.name(), column.required)
    }
}

impl Plan {
    /// Whether the database fits already.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.refusals.is_empty()
    }

    /// Every difference that cannot be bridged without losing data: a line each, with what to do.
    pub fn refusals(&self) -> &[String] {
        &self.refusals
    }

    /// The plan for people: what would be made, added, filled in and refused, a line each.
    pub fn describe(&self) -> Vec<String> {
        let done = self.steps.iter().flat_map(|step| step.lines.iter().cloned());
        let refused = self.refusals.iter().map(|line| format!("refused: {line}"));
        done.chain(refused).collect()
    }

    /// Carries the plan out, all of it or nothing; inside the caller's transaction if there is one.
    ///
    /// - `now`: what rows get that are there already when a column with the default `now` is added.
    /// - Errors: SQLite's own; and a plan with refusals is not carried out.
    pub fn apply(&self, conn: &Connection, now: Timestamp) -> rusqlite::Result<()> {
        if !self.refusals.is_empty() {
            return Err(rusqlite::Error::ToSqlConversionFailure(self.refusals.join("\n").into()));
        }
        if self.steps.is_empty() {
            return Ok(());
        }
        conn.execute_batch("SAVEPOINT rollcall_tables")?;
        let done = self.run(conn, now);
        let end = match done {
            Ok(()) => "RELEASE rollcall_tables",
            Err(_) => "ROLLBACK TO rollcall_tables; RELEASE rollcall_tables",
        };
        // RELEASE is where SQLite refuses a reference that leads nowhere, if this was the outermost.
        let ended = conn.execute_batch(end);
        if ended.is_err() {
            let _ = conn.execute_batch("ROLLBACK TO rollcall_tables; RELEASE rollcall_tables");
        }
        done.and(ended)
    }

    fn run(&self, conn: &Connection, now: Timestamp) -> rusqlite::Result<()> {
        conn.execute_batch(TABLE)?;
        // A table made anew is missing for a moment; the pragma ends with the transaction.
        conn.pragma_update(None, "defer_foreign_keys", true)?;
        for statement in self.steps.iter().flat_map(|step| &step.statements) {
            let filled =
                statement.fill.as_ref().map(|(kind, default)| ddl::fill(*kind, default, now, self.precision));
            conn.execute(&statement.sql, params_from_iter(statement.values.iter().chain(&filled)))?;
        }
        Ok(())
    }

    fn step(&mut self, lines: Vec<String>, statements: Vec<Statement>) {
        self.steps.push(Step { lines, statements });
    }

    fn refuse(&mut self, line: String) {
        self.refusals.push(line);
    }
}

/// Compares the database with the schema. Reads only.
pub fn plan(conn: &Connection, schema: &Schema) -> rusqlite::Result<Plan> {
    let mut plan = Plan { precision: schema.precision, steps: Vec::new(), refusals: Vec::new() };
    let mut known = held::records(conn)?;
    compare_precision(&mut plan, known.remove(""));
    for id in schema.parents_first() {
        let table = schema.at(*id);
        let found = object(conn, &table.name)?;
        match (known.remove(&table.name.to_ascii_lowercase()), found) {
            (None, None) => create(&mut plan, schema, table),
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
            (Some(records), Some(_)) => fit(&mut plan, conn, schema, table, &records)?,
        }
    }
    for records in known.values() {
        if object(conn, &records.table)?.is_some() {
            plan.refuse(format!(
                "{}: the database has this table and the schema does not declare it; declare it again, or \
                 drop the table by hand",
                records.table
            ));
        }
    }
    Ok(plan)
}

/// Times grow finer without loss. Cut down, no row would have the time that devices know it by.
fn compare_precision(plan: &mut Plan, records: Option<Records>) {
    let is = match plan.precision {
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
    plan.step(line.into_iter().collect(), vec![Statement::record("", PRECISION, is, false)]);
}

fn create(plan: &mut Plan, schema: &Schema, table: &Table) {
    let columns: Vec<_> = table.columns.iter().map(|column| ddl::column(&column.name, column.kind)).collect();
    let mut statements = vec![
        Statement::plain(ddl::create_table(schema, table, &columns)),
        Statement::record(&table.name, &table.owner_column, OWNER, true),
        Statement::record(&table.name, &table.key, KEY, true),
    ];
    statements.extend(table.columns.iter().map(|column| Statement::record_column(table, column)));
    statements.extend(
        table.references().map(|(at, _)| Statement::plain(ddl::create_index(table, &table.columns[at]))),
    );
    plan.step(vec![format!("create table {}", table.name)], statements);
}

/// Plans what one table that rollcall made before needs now.
fn fit(
    plan: &mut Plan,
    conn: &Connection,
    schema: &Schema,
    table: &Table,
    records: &Records,
) -> rusqlite::Result<()> {
    let refused_before = plan.refusals.len();
    for (what, was, is) in [(OWNER, &records.owner, &table.owner_column), (KEY, &records.key, &table.key)] {
        if !was.eq_ignore_ascii_case(is) {
            plan.refuse(format!(
                "{}: the {what} column is {was:?} in the database and {is:?} in the schema; name it {was:?}",
                table.name
            ));
        }
    }
    let held = Held::read(conn, table)?;
    refuse_lost_columns(plan, table, records, &held);
    compare_types(plan, table, records, &held);
    let columns = compare_columns(plan, conn, table, records, &held)?;
    let references = compare_references(plan, conn, schema, table, records, &held)?;
    let anew = !references.is_empty() || columns.added.iter().any(|column| column.references.is_some());
    let alien = held.columns.iter().find(|name| !records.is_own(name) && records.column(name).is_none());
    if let (true, Some(alien)) = (anew, alien) {
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
    let mut statements = if anew {
        make_anew(conn, schema, table, records, &held, &columns.added)?
    } else {
        let add = |column: &&Column| {
            let column = ddl::column(&column.name, column.kind);
            Statement::plain(format!("ALTER TABLE {} ADD COLUMN {column}", quoted(&table.name)))
        };
        columns.added.iter().map(add).collect()
    };
    statements.extend(columns.after);
    plan.step(lines, statements);
    Ok(())
}

/// What becomes of a table's columns.
#[derive(Default)]
struct Columns<'a> {
    lines: Vec<String>,
    added: Vec<&'a Column>,
    /// What follows once they are there.
    after: Vec<Statement>,
}

/// Plans what declared columns need: to be added, to be filled in, to be remembered otherwise.
fn compare_columns<'a>(
    plan: &mut Plan,
    conn: &Connection,
    table: &'a Table,
    records: &Records,
    held: &Held,
) -> rusqlite::Result<Columns<'a>> {
    let mut columns = Columns::default();
    for column in &table.columns {
        let at = format!("{}.{}", table.name, column.name);
        if held.has(&column.name) && !records.agrees(column) {
            continue; // refused already
        }
        let (mut line, empty, condition) = if !held.has(&column.name) {
            columns.added.push(column);
            let line = format!("add column {at} ({})", column.kind.name());
            (line, count(conn, &quoted(&table.name))?, String::new())
        } else if records.required(column) == column.required {
            continue;
        } else if column.required {
            let condition = format!(" WHERE {} IS NULL", quoted(&column.name));
            let empty = count(conn, &format!("{}{condition}", quoted(&table.name)))?;
            (format!("{at} is required now"), empty, condition)
        } else {
            (format!("{at} is no longer required"), 0, String::new())
        };
        match &column.default {
            Some(default) if empty > 0 => {
                line.push_str(&format!(", its default filled in for {}", rows(empty)));
                columns.after.push(Statement {
                    sql: format!(
                        "UPDATE {} SET {} = ?1{condition}",
                        quoted(&table.name),
                        quoted(&column.name)
                    ),
                    values: Vec::new(),
                    fill: Some((column.kind, default.clone())),
                });
            }
            None if empty > 0 && column.required => plan.refuse(format!(
                "{at}: required, but {} no value and there is no default; give it a default, or leave \
                 out required",
                if empty == 1 { "1 row holds".to_owned() } else { format!("{empty} rows hold") }
            )),
            _ => {}
        }
        columns.after.push(Statement::record_column(table, column));
        columns.lines.push(line);
    }
    for name in &table.retired {
        // Rows come without it from now on; should it return as required, they are to be counted.
        if let Some((kind, true)) = records.column(name) {
            columns.after.push(Statement::record(&table.name, name, kind, false));
            columns.lines.push(format!("{}.{name} is no longer required, being retired", table.name));
        }
    }
    Ok(columns)
}

/// Refuses columns of the database that the schema has forgotten.
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

/// Refuses columns that hold something else than is declared now.
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

/// Says which references of columns that are there already change; refuses those that rows violate.
fn compare_references(
    plan: &mut Plan,
    conn: &Connection,
    schema: &Schema,
    table: &Table,
    records: &Records,
    held: &Held,
) -> rusqlite::Result<Vec<String>> {
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
        let held_parent = Held::read(conn, parent)?;
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
        let lost = count(conn, &lost)?;
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

/// Makes a table anew with the same rows: SQLite cannot add a reference of two columns otherwise.
///
/// The rows go out and come back, and are not renamed into place: only rows that come into a table
/// settle the debt that SQLite noted for each reference to them when the old table went.
fn make_anew(
    conn: &Connection,
    schema: &Schema,
    table: &Table,
    records: &Records,
    held: &Held,
    added: &[&Column],
) -> rusqlite::Result<Vec<Statement>> {
    let name = quoted(&table.name);
    let listed = held.columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ");
    let mut columns = Vec::new();
    for column in &held.columns {
        let recorded = records.column(column);
        let kind =
            ColumnType::ALL.into_iter().find(|kind| recorded.is_some_and(|(was, _)| was == kind.name()));
        columns.extend(kind.map(|kind| ddl::column(column, kind)));
    }
    columns.extend(added.iter().map(|column| ddl::column(&column.name, column.kind)));
    let mut statements = vec![
        Statement::plain(format!("CREATE TABLE {COPY} AS SELECT {listed} FROM {name}")),
        Statement::plain(format!("DROP TABLE {name}")),
        Statement::plain(ddl::create_table(schema, table, &columns)),
        Statement::plain(format!("INSERT INTO {name} ({listed}) SELECT {listed} FROM {COPY}")),
        Statement::plain(format!("DROP TABLE {COPY}")),
    ];
    // Indexes and triggers go with a table, those of other programs too.
    let mut others = conn.prepare(
        "SELECT name, sql FROM sqlite_schema
         WHERE tbl_name = ?1 COLLATE NOCASE AND type IN ('index', 'trigger') AND sql IS NOT NULL
           AND name NOT LIKE 'rollcall\\_ref\\_%' ESCAPE '\\' ORDER BY rowid",
    )?;
    let mut found = others.query([&table.name])?;
    while let Some(row) = found.next()? {
        statements.push(Statement::plain(row.get::<_, String>(1)?));
    }
    statements.extend(
        table.references().map(|(at, _)| Statement::plain(ddl::create_index(table, &table.columns[at]))),
    );
    Ok(statements)
}

fn rows(count: i64) -> String {
    if count == 1 { "1 row".to_owned() } else { format!("{count} rows") }
}
