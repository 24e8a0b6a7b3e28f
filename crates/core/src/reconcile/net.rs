use crate::broken;
use crate::model::{DeviceId, Stored, Version};

/// What a device is told of a row that changed since its cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Net {
    /// It was made since.
    Add,
    /// It was there, and is another now.
    Update,
    /// It was there, and is no more.
    Delete,
}

/// The net change of a row from a device's cursor until now; `None` if there is nothing to tell.
///
/// - `since`: the device's cursor; without one it is told the rows that are there, and drops all others.
/// - `shown_ahead`: rows that were made up to this version may have been shown to a device ahead of its cursor, and
///   nobody noted which ones.
/// - A row that was made and deleted since is not mentioned, unless the device may know it ahead of its cursor: it
///   wrote to the row or was shown it, and would keep a ghost. A deletion that is mentioned in vain does no harm.
pub fn net(row: &Stored, since: Option<Version>, device: DeviceId, shown_ahead: Version) -> Option<Net> {
    let known = since.is_some_and(|since| row.existed_at(since));
    match (row.is_tombstone(), known) {
        (false, true) => Some(Net::Update),
        (false, false) => Some(Net::Add),
        (true, true) => Some(Net::Delete),
        (true, false) if broken::is("ghosts") => None,
        (true, false) => {
            let may_be_known = row.may_be_known_to(device) || row.was_made_by(shown_ahead);
            (since.is_some() && may_be_known).then_some(Net::Delete)
        }
    }
}
