//! The database as a file: its name, its mode, its owner, and the lock of its server.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::OpenError;

/// The mode of a new file: only its owner reads and writes it. The database holds the hashes of passwords and
/// tokens.
pub const MODE: u32 = 0o600;

/// The suffix that a restore gives to the database that it replaced, before the time.
pub(super) const BEFORE_RESTORE: &str = ".before-restore-";

/// A server that is just ending, or a process that it has just started, holds the lock a moment longer.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// How many symbolic links may lead to a file that does not exist yet, as systems limit it.
const LINKS_MAX: usize = 40;

/// The path with a suffix.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The file's path after all symbolic links. SQLite names the files beside the database by it, and so does
/// this crate: with two names for one file two servers would have two logs.
pub(super) fn resolved(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    // The path does not exist yet, or is a link to a missing file.
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = folder_of(&path).join(target);
    }
    let name = path.file_name().map(ToOwned::to_owned);
    match (folder_of(&path).canonicalize(), name) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path,
    }
}

pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a file with two names, since SQLite would keep a log under each of them, and neither would contain
/// the rows of the other.
pub(super) fn has_one_name(path: &Path) -> Result<(), OpenError> {
    match path.metadata() {
        Ok(file) if file.is_file() && file.nlink() > 1 => {
            Err(OpenError::HardLinked { path: path.to_owned(), names: file.nlink() })
        }
        _ => Ok(()),
    }
}

/// Creates an empty file with this mode, whatever the umask, unless the file exists.
///
/// If `root` creates it, it gets the folder's owner, because the server runs as another user.
pub(super) fn make(path: &Path, mode: u32) -> io::Result<()> {
    // Only the owner may read it until its final owner is known.
    let made = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path);
    let file = match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    };
    give_new(&file, path)?;
    file.set_permissions(Permissions::from_mode(mode))
}

/// Gives a new file that `root` created to its folder's owner.
pub(super) fn give_new(file: &File, path: &Path) -> io::Result<()> {
    let folder = folder_of(path).metadata()?;
    // Every user creates files in a folder such as /tmp.
    if is_root() && folder.mode() & 0o1000 == 0 {
        fchown(file, Some(folder.uid()), Some(folder.gid()))
    } else {
        Ok(())
    }
}

/// Gives a file to the owner of `like`.
///
/// Errors: [`OpenError::Foreign`] if this user may not do so.
pub(super) fn give(file: &File, path: &Path, like: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError::Beside { path: path.to_owned(), error };
    let Ok(like_file) = like.metadata() else { return Ok(()) };
    let ours = file.metadata().map_err(failed)?;
    if (ours.uid(), ours.gid()) == (like_file.uid(), like_file.gid()) {
        return Ok(());
    }
    match fchown(file, Some(like_file.uid()), Some(like_file.gid())) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            // A group without this user is no reason to refuse: `as_readable_as` then leaves the group out.
            if ours.uid() == like_file.uid() { Ok(()) } else { Err(foreign(like, like_file.uid())) }
        }
        given => given.map_err(failed),
    }
}

/// Gives a file the mode of another one, which may be missing. A group that differs from the other's may read
/// nothing.
pub(super) fn as_readable_as(file: &File, like: &Path) -> io::Result<()> {
    let Ok(like) = like.metadata() else { return Ok(()) };
    let group = if file.metadata()?.gid() == like.gid() { 0o777 } else { 0o707 };
    file.set_permissions(Permissions::from_mode(like.mode() & group))
}

/// An error if a file belongs to another user than this process, unless the process runs as `root`: then this
/// is why it cannot be read or written.
pub(super) fn belongs_to_another(path: &Path) -> Option<OpenError> {
    let file = path.metadata().ok()?;
    let is_foreign = !is_root() && file.uid() != uzers::get_effective_uid();
    is_foreign.then(|| foreign(path, file.uid()))
}

fn foreign(path: &Path, owner: u32) -> OpenError {
    let user = uzers::get_effective_uid();
    OpenError::Foreign { path: path.to_owned(), owner: user_name(owner), user: user_name(user) }
}

fn is_root() -> bool {
    uzers::get_effective_uid() == 0
}

/// The name of a user, if the system knows one.
fn user_name(id: u32) -> String {
    let user = uzers::get_user_by_uid(id);
    user.map_or_else(|| format!("user {id}"), |user| user.name().to_string_lossy().into_owned())
}

/// Gives this mode to the database, the files beside it, and what restores kept of it; logs the old mode.
pub(super) fn set_mode(path: &Path, mode: u32) {
    let mut files: Vec<PathBuf> =
        ["", "-wal", "-shm", ".lock", ".past"].map(|suffix| beside(path, suffix)).into();
    files.extend(kept_by_restores(path));
    let mut before = Vec::new();
    for file in files {
        let Ok(is) = file.metadata().map(|file| file.mode() & 0o777) else { continue };
        if is == mode {
            continue;
        }
        match std::fs::set_permissions(&file, Permissions::from_mode(mode)) {
            Ok(()) => before.push(format!("{} (was {is:04o})", file.display())),
            Err(error) => {
                tracing::warn!(file = %file.display(), mode = format!("{is:04o}"), %error, "the mode of a file cannot be changed");
            }
        }
    }
    if !before.is_empty() {
        let (files, mode) = (before.join(", "), format!("{mode:04o}"));
        tracing::warn!(files, mode, "files of the database have the mode of --database-mode from now on");
    }
}

/// The databases that restores replaced and kept.
fn kept_by_restores(path: &Path) -> Vec<PathBuf> {
    let Some(name) = path.file_name() else { return Vec::new() };
    let mut begins = name.to_owned();
    begins.push(BEFORE_RESTORE);
    let entries = std::fs::read_dir(folder_of(path)).into_iter().flatten().flatten();
    let is_kept = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(begins.as_encoded_bytes());
    entries.filter(|entry| is_kept(&entry.file_name())).map(|entry| entry.path()).collect()
}

/// Deletes the second name of the database that a killed restore may have left. The database still exists
/// under its first name.
fn drop_name_of_killed_restore(path: &Path) -> io::Result<()> {
    let is = path.metadata()?;
    for kept in kept_by_restores(path) {
        let other = kept.metadata()?;
        if (other.dev(), other.ino()) == (is.dev(), is.ino()) {
            std::fs::remove_file(&kept)?;
        }
    }
    Ok(())
}

/// The lock of the one process that serves a database. The system releases it when the process ends.
#[derive(Debug)]
pub(super) struct Served {
    /// The file beside the database, locked.
    _by_name: File,
    /// The database itself, locked, so that no other name of it leads to a second server. It is closed only
    /// after SQLite has closed its own handles: the system releases a process's locks of a file when the
    /// process closes any handle of it.
    _by_inode: Option<File>,
}

impl Served {
    /// Takes the lock, and creates the database if it does not exist.
    ///
    /// - `path` is [`resolved`].
    /// - Errors: [`OpenError::Served`] if another process holds it.
    pub fn lock(path: &Path, mode: u32) -> Result<Self, OpenError> {
        let by_name = Self::lock_name(path)?;
        make(path, mode).map_err(|error| refusal(path, error))?;
        drop_name_of_killed_restore(path).map_err(|error| refusal(path, error))?;
        has_one_name(path)?;
        Ok(Self { _by_name: by_name, _by_inode: lock_inode(path)? })
    }

    /// Takes the lock of a database that may be missing, replaced or deleted.
    pub fn lock_if_there(path: &Path) -> Result<Self, OpenError> {
        let by_name = Self::lock_name(path)?;
        let by_inode = if path.is_file() { lock_inode(path)? } else { None };
        Ok(Self { _by_name: by_name, _by_inode: by_inode })
    }

    /// Locks only the file beside the database.
    pub fn lock_name(path: &Path) -> Result<File, OpenError> {
        if path.is_dir() {
            return Err(OpenError::no_folder(path, ""));
        }
        let beside = beside(path, ".lock");
        make(&beside, MODE).map_err(|error| refusal(path, error))?;
        // Root may have created it for a server that runs as another user; reading is enough to lock it.
        let file = File::open(&beside).map_err(|error| refusal(path, error))?;
        lock(file, &beside, path)
    }
}

/// Locks the database itself. On other systems than Linux such a lock would keep SQLite's own locks out.
fn lock_inode(path: &Path) -> Result<Option<File>, OpenError> {
    if !cfg!(target_os = "linux") {
        return Ok(None);
    }
    let file = File::open(path).map_err(|error| refusal(path, error))?;
    lock(file, path, path).map(Some)
}

fn lock(file: File, path: &Path, database: &Path) -> Result<File, OpenError> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => return Err(OpenError::Served(database.to_owned())),
            Err(TryLockError::Error(error)) => {
                return Err(OpenError::Beside { path: path.to_owned(), error });
            }
        }
    }
}

/// Why a file cannot be created or opened, in terms that an operator can act on.
fn refusal(path: &Path, error: io::Error) -> OpenError {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            belongs_to_another(path).unwrap_or_else(|| OpenError::ReadOnly(path.to_owned()))
        }
        ErrorKind::ReadOnlyFilesystem => OpenError::ReadOnly(path.to_owned()),
        ErrorKind::NotFound => OpenError::no_folder(path, &error.to_string()),
        _ => OpenError::Beside { path: path.to_owned(), error },
    }
}
