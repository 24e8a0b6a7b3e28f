//! Explains why a row is not on a device: facts in, one plain sentence out.
//!
//! It is meant for an operator with a user on the phone. It states what the server knows, and marks what the
//! server can only guess: the server does not see what an app did with a response.

use crate::model::{DeviceId, Owner, Stored, Timestamp, Version};

/// The facts for an explanation.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The owner of the row.
    pub owner: Owner,
    /// The owner's version now.
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
    /// The owner of the rows that it syncs.
    pub owner: Owner,
    /// Whether its token has expired.
    pub expired: bool,
}

/// Explains why the row is not on the device, as far as the server can know.
pub fn explain(facts: &Facts<'_>) -> String {
    let named = facts.signed_in.map_or("The device".to_owned(), |device| format!("\"{}\"", device.name));
    if facts.signed_in.is_some_and(|device| device.owner != facts.owner) {
        return format!("{named} is signed in for another owner, whose rows are all that it is ever told.");
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
            "The server holds no row under this key: it never came here, or it was deleted at version {horizon} or \
             before and is forgotten since."
        );
    }
    "The server holds no row under this key and never did: whoever made it has not sent it, or it was rejected."
        .into()
}

fn delivery(facts: &Facts<'_>) -> &'static str {
    if facts.acknowledged.is_some() {
        "No device of this owner is told of it."
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
        (false, true) => format!("The row is alive and as this device itself wrote it at version {version}."),
        (false, false) => format!("The row is alive and last changed at version {version}."),
    };
    let alive = !row.is_tombstone();
    let Some((seen, _)) = facts.acknowledged else {
        let guess = if own {
            "It has what it wrote; whether it kept it is for the app to say."
        } else if facts.signed_in.is_some() || !facts.knows_devices {
            "has never shown a cursor, so it compares the whole manifest or has not synced yet: what it holds, only \
             its next sync will tell."
        } else {
            return what;
        };
        return if own { format!("{what} {guess}") } else { format!("{what} {named} {guess}") };
    };
    let then = if seen.epoch() != facts.version.epoch() {
        "The database was restored from a backup since the device last synced: its cursor is refused (410), and it \
         fetches everything again."
            .into()
    } else if seen < facts.horizon {
        format!(
            "The device stands at version {seen}, and what happened up to {} is forgotten: its cursor is refused \
             (410), and it fetches everything again.",
            facts.horizon
        )
    } else if seen >= version {
        let fate = if alive { "has the row, or the app lost it" } else { "has deleted it" };
        let cure = if alive {
            " Its next check of the digests will differ then, and it fetches everything again."
        } else {
            ""
        };
        format!("The device has acknowledged version {seen}: it was told, so it {fate}.{cure}")
    } else if own {
        format!("The device stands at version {seen} and is told its own change again with its next sync.")
    } else {
        let behind = facts.version.0 - seen.0;
        let versions = if behind == 1 { "version" } else { "versions" };
        let gets = if alive { "gets the row" } else { "is told of the deletion" };
        format!(
            "The device stands at version {seen}, {behind} {versions} behind, and {gets} with its next sync."
        )
    };
    format!("{what} {then}")
}

/// Whether the device can sync at all.
fn access(facts: &Facts<'_>, named: &str) -> Option<String> {
    match facts.signed_in {
        Some(device) if device.expired => {
            Some(format!("But its token has expired: {named} must log in before it can sync."))
        }
        Some(_) => None,
        None if !facts.knows_devices => None,
        None if facts.acknowledged.is_some() => {
            Some("But it is signed out: it must log in before it can sync.".into())
        }
        None => {
            Some("No device with this id is signed in, and none has shown a cursor of this owner.".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::Claim;

    const ME: DeviceId = DeviceId(Uuid::from_u128(1));
    const OTHER: DeviceId = DeviceId(Uuid::from_u128(2));
    const ANNA: Owner = Owner(Uuid::from_u128(3));
    const BEN: Owner = Owner(Uuid::from_u128(4));

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

    fn phone(owner: Owner, expired: bool) -> Option<SignedIn<'static>> {
        Some(SignedIn { name: "phone", owner, expired })
    }

    /// Goal: each case has its sentence. Method: the facts that differ, and words that the explanation must
    /// contain.
    #[test]
    fn every_case_has_its_answer() {
        let (alive, own) = (row(7, OTHER, true), row(7, ME, true));
        let (gone, gone_by_own) = (row(7, OTHER, false), row(7, ME, false));
        let signed_in = phone(ANNA, false);
        let epoch = Version::first(1).0;
        type Case<'a> =
            (&'a str, Option<&'a Stored>, Option<SignedIn<'a>>, Option<u64>, u64, u64, &'a [&'a str]);
        let cases: &[Case<'_>] = &[
            ("never existed", None, signed_in, Some(9), 9, 1, &["never did", "rejected"]),
            ("never existed, no cursor", None, signed_in, None, 9, 1, &["never did"]),
            ("purged, perhaps", None, signed_in, Some(9), 9, 5, &["version 5 or before", "forgotten"]),
            (
                "deleted, told",
                Some(&gone),
                signed_in,
                Some(7),
                9,
                1,
                &["deleted at version 7", "has deleted it"],
            ),
            ("deleted, behind", Some(&gone), signed_in, Some(6), 9, 1, &["is told of the deletion"]),
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
            ("acknowledged just it", Some(&alive), signed_in, Some(7), 9, 1, &["it was told"]),
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
                &["this device itself wrote", "own change again"],
            ),
            ("written by itself, no cursor", Some(&own), signed_in, None, 9, 1, &["has what it wrote"]),
            ("no cursor", Some(&alive), signed_in, None, 9, 1, &["\"phone\" has never shown a cursor"]),
            ("cursor too old", Some(&alive), signed_in, Some(3), 9, 5, &["up to 5 is forgotten", "410"]),
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
                phone(ANNA, true),
                Some(4),
                9,
                1,
                &["5 versions behind", "expired", "log in"],
            ),
            ("another owner's device", Some(&alive), phone(BEN, false), Some(4), 9, 1, &["another owner"]),
        ];
        for (case, row, signed_in, seen, version, horizon, words) in cases {
            let facts = Facts {
                owner: ANNA,
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
            owner: ANNA,
            version: Version(9),
            horizon: Version(1),
            row: Some(&alive),
            device: ME,
            signed_in: None,
            acknowledged: None,
            knows_devices: false,
        };
        let story = explain(&facts);
        assert!(story.contains("The device has never shown a cursor"), "{story}");
        assert!(!story.contains("signed"), "{story}");
    }
}
