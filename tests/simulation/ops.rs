//! What can happen in a history. An operation names what it is about by small numbers and carries its own seed,
//! so that any part of a history can be left out and the rest still means the same.

use serde::{Deserialize, Serialize};

pub use crate::rng::Rng;

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// A user makes or changes a row.
    Put { device: usize, table: usize, slot: usize, draw: u64 },
    /// A user deletes a row.
    Delete { device: usize, table: usize, slot: usize },
    /// A device syncs, over a network that is as good as `net` makes it; 0 is a perfect one.
    Sync { device: usize, manifest: bool, net: u64 },
    /// The network delivers an old request of a device once more.
    Again { device: usize, draw: u64 },
    /// An app without idempotency keys writes, loses the answer and sends the very same.
    Plain { device: usize, table: usize, slot: usize, draw: u64 },
    /// An app without idempotency keys changes a row twice, and the first request comes once more, late.
    Late { device: usize, table: usize, slot: usize, draw: u64 },
    /// Two phones with one token change the row that both have seen.
    Clones { device: usize, table: usize, slot: usize, draw: u64 },
    /// An app that says nothing but `last_update` changes a row several times in one moment.
    Quick { device: usize, table: usize, slot: usize, draw: u64 },
    /// A device asks for a row without a base, and another deletes it.
    Look { device: usize, other: usize, table: usize, slot: usize },
    /// A device takes the lock and is not heard of again.
    Hold { device: usize },
    /// A device that was paused writes under a lock that another has had since.
    Stale { device: usize, other: usize, table: usize, slot: usize },
    /// The owner breaks the lock while a request is inside its transaction.
    Broken { device: usize, table: usize, slot: usize, draw: u64 },
    /// A phone is set up from another's backup: it gets its file, with all that waits in it, and loses its own.
    Copy { device: usize, other: usize },
    /// The app gives a device the token of another's user.
    Stranger { device: usize, other: usize, manifest: bool },
    /// A user looks at the conflicts and brings a loser back.
    Undo { device: usize, draw: u64 },
    /// A guest becomes a member of the owner that it visits, gets another role, leaves, or is taken out.
    Member { guest: usize, draw: u64 },
    /// Nothing, for so long.
    Wait { ms: i64 },
    /// A device's clock is off by so much from now on.
    Clock { device: usize, ms: i64 },
    /// An app dies and is started again.
    DeviceCrash { device: usize },
    /// The server dies and is started again.
    ServerCrash,
    /// So many days later, what is old is forgotten.
    Purge { days: i64 },
    /// A copy of the database is made.
    Backup,
    /// The copy is put in the database's place.
    Restore,
    /// The copy comes in the database's place without `rollcall restore`: a file copied back, a recovery to a time.
    Swap,
    /// The server gets a schema with more columns and tables.
    NewSchema,
    /// Everybody syncs until nothing moves; then all must be equal.
    Settle,
}

pub const OWNERS: usize = 3;
/// Devices of the owners' own users.
pub const DEVICES: usize = 7;
/// Devices of users who visit another user's owner. Their numbers follow.
pub const GUESTS: usize = 2;
pub const TABLES: usize = 6;
pub const SLOTS: usize = 5;

/// A history of so many operations.
pub fn history(seed: u64, length: usize) -> Vec<Op> {
    let mut rng = Rng(seed);
    let mut ops: Vec<Op> = (0..length).map(|_| draw(&mut rng)).collect();
    ops.push(Op::Settle);
    ops
}

fn draw(rng: &mut Rng) -> Op {
    let device = rng.below(DEVICES as u64) as usize;
    let any = rng.below((DEVICES + GUESTS) as u64) as usize;
    let table = rng.below(TABLES as u64) as usize;
    let slot = rng.below(SLOTS as u64) as usize;
    let draw = rng.next();
    match rng.below(2_000) {
        0..900 => Op::Put { device: any, table, slot, draw },
        900..1_050 => Op::Delete { device: any, table, slot },
        1_050..1_060 => Op::Member { guest: rng.below(GUESTS as u64) as usize, draw },
        1_060..1_660 => {
            let net = if rng.often(600) { 0 } else { draw | 1 };
            Op::Sync { device: any, manifest: rng.often(350), net }
        }
        1_660..1_720 => Op::Again { device, draw },
        1_720..1_745 => Op::Plain { device, table, slot, draw },
        1_745..1_757 => Op::Late { device, table, slot, draw },
        1_757..1_767 => Op::Clones { device, table, slot, draw },
        1_767..1_773 => Op::Quick { device, table, slot, draw },
        1_773..1_780 => Op::Look { device, other: (draw % DEVICES as u64) as usize, table, slot },
        1_780..1_790 => Op::Hold { device },
        1_790..1_810 => Op::Stale { device, other: (draw % DEVICES as u64) as usize, table, slot },
        1_810..1_830 => Op::Broken { device, table, slot, draw },
        1_830..1_850 => Op::Undo { device, draw },
        1_850..1_856 => Op::Copy { device, other: (draw % DEVICES as u64) as usize },
        1_856..1_862 => Op::Stranger {
            device,
            other: (draw % DEVICES as u64) as usize,
            manifest: table.is_multiple_of(2),
        },
        1_862..1_930 => {
            let most = *rng.among(&[5, 1_000, 20_000, 600_000]);
            Op::Wait { ms: 1 + rng.below(most) as i64 }
        }
        1_930..1_965 => {
            let most = *rng.among(&[3_i64, 1_500, 120_000, 86_400_000]);
            Op::Clock { device: any, ms: rng.below(2 * most as u64 + 1) as i64 - most }
        }
        1_965..1_980 => Op::DeviceCrash { device: any },
        1_980..1_987 => Op::ServerCrash,
        1_987..1_992 => Op::Purge { days: rng.below(4) as i64 },
        1_992..1_995 => Op::Backup,
        1_995..1_996 => Op::Restore,
        1_996..1_997 => Op::Swap,
        1_997..1_998 => Op::NewSchema,
        _ => Op::Settle,
    }
}
