//! Explains why a row is not on a device: facts in, one plain sentence out.
//!
//! It is meant for an operator with a user on the phone. It states what the server knows, and marks what the
//! server can only guess: the server does not see what an app did with a response.

use crate::model::{DeviceId, Stored, Timestamp, Version};

/// The facts for an explanation.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The version of the row's owner now.
    pub version: Version,
    /// Changes up to here may have been forgotten.
    pub horizon: Version,
    /// The stored row, live or deleted.
    pub row: Option<&'a Stored>,
    /// The device.
    pub device: DeviceId,
    /// The device's log-in; `None` if it is not signed in.
    pub signed_in: Option<SignedIn<'a>>,
    /// The cursor that the device has acknowledged, and when.
    pub acknowledged: Option<(Version, Timestamp)>,
    /// Whether the server knows which devices are signed in. It does not with an identity provider.
    pub knows_devices: bool,
}

/// A device that is signed in.
#[derive(Clone, Copy, Debug)]
pub struct SignedIn<'a> {
    /// The name that the app gave.
    pub name: &'a str,
    /// Whether its user is a member of the owner of the row.
    pub is_member: bool,
    /// Whether its token has expired.
    pub expired: bool,
}

/// Explains why the row is not on the device, as far as the server can know.
pub fn explain(facts: &Facts<'_>) -> String {
    let named = facts.signed_in.map_or("The device".to_owned(), |device| format!("\"{}\"", device.name));
    if facts.signed_in.is_some_and(|device| !device.is_member) {
        return format!(
            "{named} belongs to a user who is not a member of this owner, so it gets none of its rows."
        );
    }
    let Some(row) = facts.row else { return format!("{} {}", no_row(facts), delivery(facts)) };
    let story = story(facts, row, &named);
    match access(facts, &named) {
        Some(access) => format!("{story} {access}"),
        None => story,
    }
}

/// What happened to the row.
fn no_row(facts: &Facts<'_>) -> String {
    let first = Version::first(facts.version.epoch());
    if facts.horizon > first {
        let horizon = facts.horizon;
        return format!(
            "The server holds no row under this key: no device sent it, or it was deleted at version {horizon} or before \
             and the deletion has been purged."
        );
    }
    "The server holds no row under this key and never did: the device that made it has not sent it, or the row was \
     rejected."
        .into()
}

fn delivery(facts: &Facts<'_>) -> &'static str {
    if facts.acknowledged.is_some() {
        "No device of this owner receives it."
    } else {
        "No device can get it from here."
    }
}

/// What the device received about the row.
fn story(facts: &Facts<'_>, row: &Stored, named: &str) -> String {
    let version = row.version;
    let own = row.changed_by == facts.device;
    let what = match (row.is_tombstone(), own) {
        (true, true) => format!("The row was deleted at version {version} by this device itself."),
        (true, false) => format!("The row was deleted at version {version}."),
        (false, true) => {
            format!("The row is alive. This device itself wrote its present state at version {version}.")
        }
        (false, false) => format!("The row is alive and last changed at version {version}."),
    };
    let alive = !row.is_tombstone();
    let Some((seen, _)) = facts.acknowledged else {
        let guess = if own {
            "The device had that state when it sent it; only the app knows whether it kept it."
        } else if facts.signed_in.is_some() || !facts.knows_devices {
            "has never sent a cursor, so it compares the whole manifest or has not synced yet. Its next sync will show \
             what it holds."
        } else {
            return what;
        };
        return if own { format!("{what} {guess}") } else { format!("{what} {named} {guess}") };
    };
    let then = if seen.epoch() != facts.version.epoch() {
        "The database was restored from a backup after the last sync of the device. The server refuses its cursor \
         (410), and the device fetches everything again."
            .into()
    } else if seen < facts.horizon {
        format!(
            "The device is at version {seen}, and changes up to {} have been purged. The server refuses its cursor \
             (410), and the device fetches everything again.",
            facts.horizon
        )
    } else if seen >= version {
        let fate = if alive { "has the row, or the app lost it" } else { "has deleted it" };
        let cure = if alive {
            " If the app lost it, the next comparison of digests will show that, and the device fetches everything again."
        } else {
            ""
        };
        format!("The device has acknowledged version {seen}, so it {fate}.{cure}")
    } else if own {
        format!("The device is at version {seen} and receives its own change again with its next sync.")
    } else {
        let behind = facts.version.0 - seen.0;
        let versions = if behind == 1 { "version" } else { "versions" };
        let receives = if alive { "receives the row" } else { "receives the deletion" };
        format!(
            "The device is at version {seen}, {behind} {versions} behind, and {receives} with its next sync."
        )
    };
    format!("{what} {then}")
}

/// Whether the device can sync at all.
fn access(facts: &Facts<'_>, named: &str) -> Option<String> {
    match facts.signed_in {
        Some(device) if device.expired => {
            Some(format!("But its token has expired: {named} must log in again before it can sync."))
        }
        Some(_) => None,
        None if !facts.knows_devices => None,
        None if facts.acknowledged.is_some() => {
            Some("But it is signed out: it must log in before it can sync.".into())
        }
        None => Some("No device with this id is signed in, and none has sent a cursor of this owner.".into()),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::Claim;

    const ME: DeviceId = DeviceId(Uuid::from_u128(1));
    const OTHER: DeviceId = DeviceId(Uuid::from_u128(2));

    fn row(version: u64, by: DeviceId, alive: bool) -> Stored {
        Stored {
            version: Version(version),
            created: Version(2),
            last_update: Timestamp::from_ms(0),
            made_at: None,
            claim: Claim::default(),
            made_by: OTHER,
            changed_by: by,
            lifetimes: Vec::new(),
            aware_devices: Vec::new(),
            values: alive.then(Vec::new),
        }
    }

    fn phone(is_member: bool, expired: bool) -> Option<SignedIn<'static>> {
        Some(SignedIn { name: "phone", is_member, expired })
    }

    /// Goal: each case has its sentence. Method: the facts that differ, and words that the explanation must
    /// contain.
    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn every_case_has_its_answer() {
        let (alive, own) = (row(7, OTHER, true), row(7, ME, true));
        let (gone, gone_by_own) = (row(7, OTHER, false), row(7, ME, false));
        let signed_in = phone(true, false);
        let epoch = Version::first(1).0;
        type Case<'a> =
            (&'a str, Option<&'a Stored>, Option<SignedIn<'a>>, Option<u64>, u64, u64, &'a [&'a str]);
        let cases: &[Case<'_>] = &[
            ("never existed", None, signed_in, Some(9), 9, 1, &["never did", "rejected"]),
            ("never existed, no cursor", None, signed_in, None, 9, 1, &["never did"]),
            ("purged, perhaps", None, signed_in, Some(9), 9, 5, &["version 5 or before", "purged"]),
            (
                "deleted, received",
                Some(&gone),
                signed_in,
                Some(7),
                9,
                1,
                &["deleted at version 7", "has deleted it"],
            ),
            ("deleted, behind", Some(&gone), signed_in, Some(6), 9, 1, &["receives the deletion"]),
            ("deleted by itself", Some(&gone_by_own), signed_in, Some(9), 9, 1, &["by this device itself"]),
            (
                "acknowledged past it",
                Some(&alive),
                signed_in,
                Some(8),
                9,
                1,
                &["acknowledged version 8", "app lost it", "digests"],
            ),
            (
                "acknowledged just it",
                Some(&alive),
                signed_in,
                Some(7),
                9,
                1,
                &["acknowledged version 7", "app lost it"],
            ),
            (
                "behind by many",
                Some(&alive),
                signed_in,
                Some(4),
                9,
                1,
                &["version 4, 5 versions behind", "next sync"],
            ),
            ("behind by one", Some(&alive), signed_in, Some(6), 7, 1, &["1 version behind"]),
            (
                "written by itself, behind",
                Some(&own),
                signed_in,
                Some(6),
                9,
                1,
                &["This device itself wrote", "own change again"],
            ),
            (
                "written by itself, no cursor",
                Some(&own),
                signed_in,
                None,
                9,
                1,
                &["had that state when it sent it"],
            ),
            ("no cursor", Some(&alive), signed_in, None, 9, 1, &["\"phone\" has never sent a cursor"]),
            ("cursor too old", Some(&alive), signed_in, Some(3), 9, 5, &["up to 5 have been purged", "410"]),
            (
                "restored since",
                Some(&row(epoch + 1, OTHER, true)),
                signed_in,
                Some(8),
                epoch + 2,
                epoch,
                &["restored from a backup", "410"],
            ),
            ("signed out", Some(&alive), None, Some(4), 9, 1, &["5 versions behind", "signed out"]),
            (
                "unknown",
                Some(&alive),
                None,
                None,
                9,
                1,
                &["last changed at version 7", "No device with this id"],
            ),
            (
                "expired token",
                Some(&alive),
                phone(true, true),
                Some(4),
                9,
                1,
                &["5 versions behind", "expired", "log in"],
            ),
            ("no member", Some(&alive), phone(false, false), Some(4), 9, 1, &["not a member of this owner"]),
        ];
        for (case, row, signed_in, seen, version, horizon, words) in cases {
            let facts = Facts {
                version: Version(*version),
                horizon: Version(*horizon),
                row: *row,
                device: ME,
                signed_in: *signed_in,
                acknowledged: seen.map(|seen| (Version(seen), Timestamp::from_ms(0))),
                knows_devices: true,
            };
            let story = explain(&facts);
            for word in *words {
                assert!(story.contains(word), "{case}: {word:?} is not in {story:?}");
            }
            assert!(story.ends_with('.') && !story.contains("  "), "{case}: {story:?}");
        }
    }

    #[test]
    fn where_an_identity_provider_signs_in_nobody_is_called_signed_out() {
        let alive = row(7, OTHER, true);
        let facts = Facts {
            version: Version(9),
            horizon: Version(1),
            row: Some(&alive),
            device: ME,
            signed_in: None,
            acknowledged: None,
            knows_devices: false,
        };
        let story = explain(&facts);
        assert!(story.contains("The device has never sent a cursor"), "{story}");
        assert!(!story.contains("signed"), "{story}");
    }
}
