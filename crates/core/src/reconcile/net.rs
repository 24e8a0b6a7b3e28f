use crate::broken;
use crate::model::{DeviceId, Stored, Version};

/// What the change feed returns to a device of a row that changed since its cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetChange {
    /// The row was created since.
    Add,
    /// The row existed and changed since.
    Update,
    /// The row existed and was deleted since.
    Delete,
}

/// The net change of a row from a device's cursor until now; `None` if there is nothing to return.
///
/// - `since`: the device's cursor; without one it gets the rows that are there, and drops all others.
/// - `shown_ahead`: rows that were created up to this version may have been returned to a device ahead of its
///   cursor, and which ones was not recorded.
/// - A row that was created and deleted since is not mentioned, unless the device may know it ahead of its
///   cursor: it wrote to the row or received it, and would keep a ghost. A redundant deletion is harmless.
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
