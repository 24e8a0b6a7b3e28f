//! Users who visit another user's owner: they join, get other roles, leave and come back while their edits wait.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use rollcall::device::{Proof, Request, Response, Store, SyncError, SyncReport, responses};
use rollcall::model::Role;
use serde_json::{Value as Json, json};

use crate::device::Heart;
use crate::rng::Rng;
use crate::truth::{Check, must};
use crate::world::{DEVICES, Device, TABLES, World, slot_key};

/// What a guest may do at a moment. Two equal ones mean that nothing changed in between.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    role: Option<Role>,
    changes: u64,
}

impl World {
    pub fn standing(&self, device: &Device) -> Standing {
        let truth = self.database.truth.lock();
        let data = truth.owners.get(&device.owner);
        let role = device.guest.and_then(|user| data?.roles.get(&user).copied());
        Standing { role, changes: data.map_or(0, |data| data.role_changes) }
    }

    /// Whether a device's user may read the owner of its rows.
    pub fn is_member(&self, device: &Device) -> bool {
        device.guest.is_none() || self.standing(device).role.is_some()
    }

    /// Notes rows on which the server decided: that ends their edits, and a sync that ends early reports none of it.
    fn note_settled(&self, device: &Device, answer: &Response) {
        let result: Json = serde_json::from_slice(&answer.body).unwrap_or_default();
        for table in self.schema.tables() {
            let items = ["add", "update", "delete"].map(|set| result[set][&table.name].as_array());
            let decided = items.into_iter().flatten().flatten().filter(|item| item["verdict"] != "rejected");
            let keys = decided.filter_map(|item| responses::key(&item[&table.key]));
            device.settled.lock().extend(keys.map(|key| (table.name.clone(), key)));
        }
    }

    /// A response to a guest is as its membership says, if that did not change since the request was sent.
    pub fn check_standing(
        &self,
        device: &Device,
        before: Standing,
        request: &Request,
        answer: &Response,
    ) -> Check {
        let is_about_rows = request.path.contains("owner=");
        if device.guest.is_some() && answer.status == 200 && request.path.starts_with("synchronise") {
            self.note_settled(device, answer);
        }
        if device.guest.is_none() || !is_about_rows || self.standing(device) != before {
            return Ok(());
        }
        let is_refused =
            answer.status == 403 && String::from_utf8_lossy(&answer.body).contains("not_a_member");
        let is_overloaded = matches!(answer.status, 408 | 503);
        match before.role {
            Some(_) => must(!is_refused, || "a member is not refused as a stranger".into()),
            None => must(is_refused || is_overloaded, || "who is no member gets no row".into()),
        }
    }
}

/// What apps do about members: a manager invites the guest, changes its role or takes it out; the guest accepts, or
/// leaves.
pub fn membership(world: &World, device: &Device, rng: &mut Rng, heart: &Heart) {
    let ask = |method, path: String, body: Option<Json>| {
        let headers = vec![("authorization", format!("Bearer {}", device.token()))];
        let body = body.map(|body| body.to_string().into_bytes());
        heart.ask(&Request { method, path, headers, body })
    };
    let owner = device.owner;
    if let Some(user) = device.guest {
        let code = world.codes.lock().get_mut(&device.place).and_then(Vec::pop);
        if let Some(code) = code {
            let _ = ask("POST", "invitations/accept".into(), Some(json!({ "code": code, "name": "guest" })));
        } else if rng.often(60) {
            let _ = ask("DELETE", format!("owners/{owner}/members/{user}"), None);
        }
        return;
    }
    let guest = world.devices[DEVICES..].iter().find(|guest| guest.place == device.place);
    let Some(user) = guest.and_then(|guest| guest.guest).filter(|_| rng.often(300)) else { return };
    let role = *rng.among(&[Role::Read, Role::Write, Role::Write, Role::Manage]);
    let role = json!({ "role": role.name() });
    match rng.below(10) {
        0..5 => {
            let made = ask("POST", format!("owners/{owner}/invitations"), Some(role));
            let made = made.ok().and_then(|made| serde_json::from_slice::<Json>(&made.body).ok());
            let code = made.and_then(|made| Some(made["code"].as_str()?.to_owned()));
            world.codes.lock().entry(device.place).or_default().extend(code);
        }
        5..8 => drop(ask("PUT", format!("owners/{owner}/members/{user}"), Some(role))),
        _ => drop(ask("DELETE", format!("owners/{owner}/members/{user}"), None)),
    }
}

/// Whether a sync ended because the user is no member.
pub fn is_of_members(error: &SyncError) -> bool {
    matches!(error, SyncError::NotAMember { .. } | SyncError::NotAMemberAfterRestore)
}

/// What there was before a sync of a guest.
pub struct Before {
    standing: Standing,
    restores: u64,
    edits: BTreeMap<(usize, usize), String>,
}

impl Before {
    /// `None` on a device of the owner's own user.
    pub fn of(world: &World, device: &Device) -> Option<Self> {
        device.guest?;
        device.settled.lock().clear();
        let (standing, edits) = (world.standing(device), device.tokens.lock().clone());
        Some(Self { standing, restores: world.database.restores(), edits })
    }

    /// The sync ended as the membership says.
    pub fn check(
        self,
        world: &World,
        device: &Device,
        file: &Store,
        done: &Result<SyncReport, SyncError>,
    ) -> Check {
        let now = world.standing(device);
        let is_same = now == self.standing;
        let was_out = now.role.is_none() || !is_same;
        let is_restored = device.restores.load(Ordering::SeqCst) < world.database.restores();
        match done {
            Ok(report) => {
                device.restores.store(self.restores, Ordering::SeqCst);
                let is_unequal = matches!(report.proof, Proof::Repaired | Proof::Unequal(_));
                // After a restore an edit that is rejected shows the server's state only with its second verdict.
                let may = if is_unequal { !is_same || is_restored } else { !is_same || now.role.is_some() };
                must(may, || {
                    format!(
                        "only a member syncs, and ends equal: device {}, {:?}",
                        device.number, report.proof
                    )
                })
            }
            Err(SyncError::NotAMember { .. }) => {
                must(was_out, || format!("no member loses its copy: device {}", device.number))?;
                self.check_left(world, device, file)
            }
            Err(SyncError::NotAMemberAfterRestore) => must(was_out && is_restored, || {
                format!("only after a restore a copy stays without membership: device {}", device.number)
            }),
            Err(_) => Ok(()),
        }
    }

    /// A former member has no row any more, and keeps every edit that the server has not seen.
    fn check_left(self, world: &World, device: &Device, file: &Store) -> Check {
        world.left.fetch_add(1, Ordering::SeqCst);
        device.tokens.lock().clear();
        let rows: usize = TABLES.iter().map(|table| file.list(table).unwrap().len()).sum();
        must(rows == 0, || format!("a former member has no row: device {} has {rows}", device.number))?;
        let left = file.left().unwrap();
        let titles: Vec<String> =
            left.iter().filter_map(|edit| edit.columns.get("title")?.string()).collect();
        let truth = world.database.truth.lock();
        let data = truth.owners.get(&device.owner);
        let settled = device.settled.lock();
        let is_settled = |(table, slot): (usize, usize)| {
            settled.contains(&(TABLES[table].to_owned(), slot_key(table, slot)))
        };
        let is_seen = |edit: &String| data.is_some_and(|data| data.seen.contains(edit));
        let mut kept = device.kept.lock();
        let unsent = self.edits.into_iter().filter(|(place, edit)| !is_seen(edit) && !is_settled(*place));
        kept.extend(unsent.map(|(_, edit)| edit));
        kept.iter().try_for_each(|edit| {
            let is_kept = titles.contains(edit);
            must(is_kept, || {
                format!("no edit of a former member vanishes: {edit} of device {}", device.number)
            })
        })
    }
}
