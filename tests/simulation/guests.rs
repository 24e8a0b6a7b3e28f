//! Users who visit another user's owner: they join, get other roles, leave and come back while their edits wait.

use std::collections::{BTreeMap, BTreeSet};

use rollcall::device::{Proof, Request, Response, SyncError, SyncReport};
use rollcall::model::Role;
use serde_json::{Value as Json, json};

use crate::ops::{DEVICES, Rng};
use crate::oracle::{Check, Id, must, slot_key};
use crate::world::{TABLES, World};

/// A guest's part in the owner that it visits.
#[derive(Default)]
pub struct Guest {
    /// What it may do; `None` while it is no member.
    pub role: Option<Role>,
    /// How often that changed.
    changes: u64,
    /// Restores of the server before its last sync that reached the end.
    restores: u64,
    /// Whether it was no member at some time since its last sync began.
    was_out: bool,
    /// The titles that its device had not sent when its membership ended.
    kept: BTreeSet<String>,
    /// Rows on which the server decided in its sync: what it decided ends their edits, and a sync that ends early reports
    /// none of it.
    pub settled: BTreeSet<Id>,
}

impl Guest {
    pub fn set(&mut self, role: Option<Role>) {
        self.changes += u64::from(role != self.role);
        self.was_out |= role.is_none();
        self.role = role;
    }
}

impl World {
    /// Whether a device's user may read the owner of its rows.
    pub fn is_member(&self, number: usize) -> bool {
        number < DEVICES || self.guests[number - DEVICES].role.is_some()
    }

    /// Whether a device's user may write there.
    pub fn may_write(&self, number: usize) -> bool {
        number < DEVICES || self.guests[number - DEVICES].role.is_some_and(|role| role >= Role::Write)
    }

    /// Makes a guest a member, gives it another role, or ends its membership.
    pub fn member(&mut self, guest: usize, draw: u64) {
        let mut rng = Rng(draw);
        let number = DEVICES + guest;
        let role = *rng.among(&[None, Some(Role::Read), Some(Role::Write), Some(Role::Manage)]);
        let owner = self.devices[number].owner;
        let id = self.shadows[owner].owner;
        let user = self.shadows[self.devices[number].home].owner.0;
        let done = match (self.guests[guest].role, role) {
            (None, None) => return,
            (None, Some(role)) => {
                let path = format!("owners/{id}/invitations");
                let made = self.call(owner, "POST", &path, Some(json!({ "role": role.name() })));
                let made: Json = serde_json::from_slice(&made.body).unwrap_or_default();
                let accepted = json!({ "code": made["code"], "name": "guest" });
                self.call(number, "POST", "invitations/accept", Some(accepted))
            }
            (Some(_), Some(role)) => {
                let path = format!("owners/{id}/members/{user}");
                self.call(owner, "PUT", &path, Some(json!({ "role": role.name() })))
            }
            (Some(_), None) => {
                let by = if rng.often(500) { owner } else { number };
                self.call(by, "DELETE", &format!("owners/{id}/members/{user}"), None)
            }
        };
        self.note(must(done.status < 300, || {
            format!("members change: {} {}", done.status, String::from_utf8_lossy(&done.body))
        }));
        self.guests[guest].set(role);
        let app = std::sync::Arc::clone(&self.server().app);
        let check = self.shadows[owner].after_members(&*app.storage, &app.schema);
        self.note(check);
    }

    /// A request of a device's user that is about no rows.
    fn call(&self, number: usize, method: &'static str, path: &str, body: Option<Json>) -> Response {
        let headers = vec![("authorization", format!("Bearer {}", self.devices[number].token))];
        let body = body.map(|body| body.to_string().into_bytes());
        self.server().ask(&Request { method, path: path.to_owned(), headers, body })
    }

    /// One sync of a guest. It ends as its membership says.
    pub fn sync_guest(
        &mut self,
        number: usize,
        manifest: bool,
        rng: Option<Rng>,
        depth: u32,
    ) -> Option<SyncReport> {
        let at = number - DEVICES;
        let (edits, changes) = (self.devices[number].tokens.clone(), self.guests[at].changes);
        self.guests[at].was_out |= self.guests[at].role.is_none();
        self.guests[at].settled.clear();
        let done = self.try_sync(number, manifest, rng, depth)?;
        let guest = &mut self.guests[at];
        let (was_out, is_same) = (guest.was_out, guest.changes == changes);
        guest.was_out = guest.role.is_none();
        let (report, check) = match done {
            Ok(report) => {
                // After a restore an edit that is rejected shows the server's state only with its second verdict.
                let may_repair = !is_same || guest.restores < self.restores;
                guest.restores = self.restores;
                let proved = match report.proof {
                    Proof::Repaired => may_repair,
                    Proof::Unequal(_) => !is_same,
                    _ => true,
                };
                let may = guest.role.is_some() || !is_same;
                let check = must(may && proved, || {
                    format!("only a member syncs, and ends equal: device {number}, {:?}", report.proof)
                });
                (Some(report), check)
            }
            Err(SyncError::NotAMember { .. }) => {
                let check = must(was_out, || "no member is told that it is none".into());
                (None, check.and_then(|()| self.check_left(number, edits)))
            }
            Err(SyncError::NotAMemberAfterRestore) => {
                let is_restored = guest.restores < self.restores;
                let check = must(was_out && is_restored, || {
                    "only after a restore a copy stays without membership".into()
                });
                (None, check)
            }
            Err(error) => {
                let expected = matches!(error, SyncError::Call(_) | SyncError::Restless);
                let check = must(expected, || format!("a sync ends as it may: device {number}: {error}"));
                (None, check)
            }
        };
        self.note(check);
        report
    }

    /// A former member has no row any more, and keeps every edit that the server has not seen.
    fn check_left(&mut self, number: usize, edits: BTreeMap<(usize, usize), String>) -> Check {
        let device = &mut self.devices[number];
        device.tokens.clear();
        let store = device.store.as_ref().unwrap();
        let rows: usize = TABLES.iter().map(|table| store.list(table).unwrap().len()).sum();
        must(rows == 0, || format!("a former member has no row: device {number} has {rows}"))?;
        let left = store.left().unwrap();
        let titles: Vec<String> =
            left.iter().filter_map(|edit| edit.columns.get("title")?.string()).collect();
        let shadow = &self.shadows[device.owner];
        let schema = &self.server.as_ref().unwrap().app.schema;
        let settled = &self.guests[number - DEVICES].settled;
        let is_settled = |(table, slot): (usize, usize)| {
            let id = (schema.table(TABLES[table]).unwrap().id, slot_key(table, slot));
            settled.contains(&id)
        };
        let unsent =
            edits.into_iter().filter(|(place, edit)| !shadow.seen.contains(edit) && !is_settled(*place));
        let unsent: Vec<_> = unsent.map(|(_, edit)| edit).collect();
        let kept = &mut self.guests[number - DEVICES].kept;
        kept.extend(unsent);
        kept.iter().try_for_each(|edit| {
            must(titles.contains(edit), || {
                format!("no edit of a former member vanishes: {edit} of device {number}")
            })
        })
    }
}
