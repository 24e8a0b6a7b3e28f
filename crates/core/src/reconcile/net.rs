use crate::broken;
use crate::model::{DeviceId, Stored, Version};

/// What the change feed returns to a device of a row that changed since its cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetChange {
    /// It was made since.
    Add,
    /// It was there, and is another now.
    Update,
    /// It was there, and is no more.
    Delete,
}

/// The net change of a row from a device's cursor until now; `None` if there is nothing to return.
///
/// - `since`: the device's cursor; without one it gets the rows that are there, and drops all others.
/// - `shown_ahead`: rows that were made up to this version may have been shown to a device ahead of its cursor, and
///   nobody noted which ones.
/// - A row that was made and deleted since is not mentioned, unless the device may know it ahead of its cursor: it
///   wrote to the row or was shown it, and would keep a ghost. A redundant deletion does no harm.
pub fn net_change(
    row: &Stored,
    since: Option<Version>,
    device: DeviceId,
    shown_ahead: Version,
) -> Option<NetChange> {
    let known = since.is_some_and(|since| row.existed_at(since));
    match (row.is_tombstone(), known) {
        (false, true) => Some(NetChange::Update),
        (false, false) => Some(NetChange::Add),
        (true, true) => Some(NetChange::Delete),
        (true, false) if broken::is("ghosts") => None,
        (true, false) => {
            let may_be_known = row.may_be_known_to(device) || row.was_made_by(shown_ahead);
            (since.is_some() && may_be_known).then_some(NetChange::Delete)
        }
    }
}
