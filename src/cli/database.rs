use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the data is: `sqlite:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Database {
    /// A file on this machine.
    Sqlite(PathBuf),
}

impl Database {
    /// The file, which must be there: a mistyped path is no new database.
    pub fn existing(&self) -> Result<&Path, String> {
        let Self::Sqlite(path) = self;
        if path.is_file() { Ok(path) } else { Err(format!("there is no database {}", path.display())) }
    }
}

impl FromStr for Database {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            // SQLite would take these for something other than the path of a file: `./` goes before them.
            Some(("sqlite", path)) if path.starts_with(':') || path.starts_with("file:") => {
                Err("only a database in a file can be served, such as sqlite:app.db".into())
            }
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            _ => Err("expected sqlite:PATH, such as sqlite:app.db".into()),
        }
    }
}
