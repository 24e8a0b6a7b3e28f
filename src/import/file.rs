//! Reads an export: its first line, its owners, and their rows, line by line.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Read, Seek, SeekFrom};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::ImportError;
use crate::model::{Owner, Role, RowKey};

/// A longer line is none of an export: a row has `row_bytes_max`.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// An export that was read once, to its end.
pub struct ExportFile<R> {
    from: BufReader<R>,
    /// The declared tables of the server that wrote it.
    pub tables: Vec<TableLine>,
    /// The owners, in the order of the file. The first one is that of requests that name none.
    pub owners: Vec<Section>,
    line: Vec<u8>,
}

/// An owner of an export.
#[derive(Debug)]
pub struct Section {
    /// The owner's id on the server that wrote it.
    pub owner: Owner,
    /// Its name there; may be empty.
    pub name: String,
    /// The user's role there; `None` if the user was no member.
    pub role: Option<Role>,
    /// How many rows each table has.
    pub rows: BTreeMap<String, u64>,
    /// Rows that were deleted while the export was under way, by table and key. They are left out.
    deleted: HashSet<(String, RowKey)>,
    begins: u64,
    ends: u64,
}

impl Section {
    /// How many rows it has.
    pub fn row_count(&self) -> u64 {
        self.rows.values().sum()
    }
}

/// A row of an export.
#[derive(Debug)]
pub struct Row {
    /// Where its line begins.
    pub at: u64,
    /// The row as JSON.
    pub text: String,
}

/// A table as the first line declares it.
#[derive(Debug, Deserialize)]
pub struct TableLine {
    /// Its name.
    pub name: String,
    /// The column of its key.
    pub key: String,
    /// The other columns.
    pub columns: Vec<ColumnLine>,
}

/// A column as the first line declares it.
#[derive(Debug, Deserialize)]
pub struct ColumnLine {
    /// Its name.
    pub name: String,
    /// The name of its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The table that it refers to.
    pub references: Option<String>,
}

/// Any line of an export.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(borrow, default)]
    table: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    row: Option<&'a RawValue>,
    key: Option<RowKey>,
    owner: Option<Owner>,
    name: Option<String>,
    role: Option<Role>,
    owners: Option<usize>,
    tables: Option<Vec<TableLine>>,
}

impl<R: Read + Seek> ExportFile<R> {
    /// Reads an export to its end.
    ///
    /// Errors: [`ImportError::NotAnExport`]; [`ImportError::BrokenOff`] if its end is missing.
    pub fn open(from: R) -> Result<Self, ImportError> {
        let mut file =
            Self { from: BufReader::new(from), tables: Vec::new(), owners: Vec::new(), line: Vec::new() };
        file.from.seek(SeekFrom::Start(0))?;
        let (mut at, mut number, mut ended, mut expected) = (0, 0, 0, 1);
        loop {
            let length = file.next_line()?;
            if length == 0 {
                break;
            }
            number += 1;
            let wrong = |reason: String| ImportError::NotAnExport { line: number, reason };
            let line: Line<'_> =
                serde_json::from_slice(&file.line).map_err(|error| wrong(error.to_string()))?;
            let next = at + length;
            match (&*line.op, file.owners.last_mut()) {
                ("account", None) => {
                    file.tables = line.tables.ok_or_else(|| wrong("it has no `tables`".into()))?;
                    expected = line.owners.unwrap_or(1);
                    // An export of an earlier release has no role: its one owner was the user's.
                    let role = line.role.or(line.owners.is_none().then_some(Role::Manage));
                    let owner = line.owner.ok_or_else(|| wrong("it has no `owner`".into()))?;
                    file.owners.push(Section::new(owner, line.name, role, next));
                }
                ("owner", Some(_)) => {
                    let owner = line.owner.ok_or_else(|| wrong("it has no `owner`".into()))?;
                    file.owners.push(Section::new(owner, line.name, line.role, next));
                }
                ("add" | "update", Some(section)) => {
                    let table = line.table.filter(|_| line.row.is_some());
                    let table = table.ok_or_else(|| wrong("it has no `table` or no `row`".into()))?;
                    section.revive(&file.tables, &table, line.row);
                    *section.rows.entry(table.into_owned()).or_insert(0) += 1;
                    section.ends = next;
                }
                ("delete", Some(section)) => {
                    let (Some(table), Some(key)) = (line.table, line.key) else {
                        return Err(wrong("it has no `table` or no `key`".into()));
                    };
                    section.deleted.insert((table.into_owned(), key));
                    section.ends = next;
                }
                ("end" | "left", Some(_)) => ended += 1,
                (_, None) => {
                    return Err(wrong("an export begins with a line with \"op\":\"account\"".into()));
                }
                (op, Some(_)) => return Err(wrong(format!("its \"op\" is {op:?}"))),
            }
            at = next;
        }
        match file.owners.is_empty() {
            true => Err(ImportError::NotAnExport { line: 1, reason: "the file is empty".into() }),
            false if ended < expected => Err(ImportError::BrokenOff { ended, expected }),
            false => Ok(file),
        }
    }

    /// Calls `each` with the rows of one table of an owner, in the order of the file.
    pub fn rows(
        &mut self,
        owner: usize,
        table: &str,
        each: &mut dyn FnMut(&mut Self, Row) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let Some(Section { begins, ends, .. }) = self.owners.get(owner) else { return Ok(()) };
        let (mut at, ends) = (*begins, *ends);
        self.from.seek(SeekFrom::Start(at))?;
        while at < ends {
            let length = self.next_line()?;
            let row = self.row(at, Some(table))?.filter(|row| !self.is_deleted(owner, table, row));
            at += length;
            if let Some(row) = row {
                each(self, row)?;
            }
            if length == 0 {
                return Err(ImportError::Changed);
            }
        }
        Ok(())
    }

    /// The row whose line begins there.
    pub fn row_at(&mut self, at: u64) -> Result<Row, ImportError> {
        self.from.seek(SeekFrom::Start(at))?;
        self.next_line()?;
        self.row(at, None)?.ok_or(ImportError::Changed)
    }

    /// The row of the line that was read last, if it is one of that table.
    fn row(&self, at: u64, table: Option<&str>) -> Result<Option<Row>, ImportError> {
        let line: Line<'_> = serde_json::from_slice(&self.line).map_err(|_| ImportError::Changed)?;
        let is_of_table = table.is_none_or(|table| line.table.as_deref() == Some(table));
        Ok(line.row.filter(|_| is_of_table).map(|row| Row { at, text: row.get().to_owned() }))
    }

    fn is_deleted(&self, owner: usize, table: &str, row: &Row) -> bool {
        let deleted = self.owners.get(owner).map(|section| &section.deleted);
        deleted.is_some_and(|deleted| {
            !deleted.is_empty()
                && key_of(&self.tables, table, &row.text)
                    .is_some_and(|key| deleted.contains(&(table.to_owned(), key)))
        })
    }

    /// Reads a line; returns how many bytes it takes, 0 at the end of the file.
    fn next_line(&mut self) -> Result<u64, ImportError> {
        self.line.clear();
        let length = self.from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)?;
        Ok(length as u64)
    }
}

impl Section {
    fn new(owner: Owner, name: Option<String>, role: Option<Role>, begins: u64) -> Self {
        Self {
            owner,
            name: name.unwrap_or_default(),
            role,
            rows: BTreeMap::new(),
            deleted: HashSet::new(),
            begins,
            ends: begins,
        }
    }

    /// A row that comes after its deletion was added again.
    fn revive(&mut self, tables: &[TableLine], table: &str, row: Option<&RawValue>) {
        if !self.deleted.is_empty()
            && let Some(key) = row.and_then(|row| key_of(tables, table, row.get()))
        {
            self.deleted.remove(&(table.to_owned(), key));
        }
    }
}

/// The key of a row of a table.
fn key_of(tables: &[TableLine], table: &str, row: &str) -> Option<RowKey> {
    let column = &tables.iter().find(|one| one.name == table)?.key;
    let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(row).ok()?;
    serde_json::from_str(members.get(column.as_str())?.get()).ok()
}
