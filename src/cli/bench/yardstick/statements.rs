//! The engine's statements, once more: the yardstick knows nothing of the engine but its tables. A test holds
//! each of them against the engine's own text, so that a new layout brings a new yardstick.

pub const ADD_OWNER: &str = "INSERT INTO rollcall_owner \
     (owner, version, horizon, live_rows, live_bytes, seed) VALUES (?1, ?2, ?2, 0, 0, ?3) RETURNING id";

pub const OWNER: &str = "SELECT id, version, horizon, live_rows, live_bytes, seed, shown_ahead \
     FROM rollcall_owner WHERE owner = ?1";

pub const ADD_DEVICE: &str = "INSERT INTO rollcall_writer (device) VALUES (?1) RETURNING id";

pub const DATE: &str =
    "INSERT INTO rollcall_day (owner, day, version) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";

pub const PUT_DIGEST: &str = "INSERT INTO rollcall_digest (owner, tbl, live_rows, root) \
     VALUES (?1, ?2, ?3, ?4) ON CONFLICT (owner, tbl) DO UPDATE SET live_rows = excluded.live_rows, \
     root = excluded.root";

pub const ADVANCE_OWNER: &str =
    "UPDATE rollcall_owner SET version = ?2, horizon = ?3, live_rows = ?4, live_bytes = ?5 WHERE id = ?1";

pub const PUT_ENTRY: &str = "INSERT INTO rollcall_ledger \
     (owner, tbl, key, version, created, last_update, deleted, made_by, changed_by, lives, writers, made_at, \
     claimed_at, row_base, base) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) \
     ON CONFLICT (owner, tbl, key) DO UPDATE SET version = excluded.version, created = excluded.created, \
     last_update = excluded.last_update, deleted = excluded.deleted, made_by = excluded.made_by, \
     changed_by = excluded.changed_by, lives = excluded.lives, writers = excluded.writers, \
     made_at = excluded.made_at, claimed_at = excluded.claimed_at, row_base = excluded.row_base, \
     base = excluded.base";

pub const MANIFEST: &str = "SELECT key, last_update FROM rollcall_ledger \
     WHERE owner = ?1 AND tbl = ?2 AND key > ?3 AND deleted = 0 ORDER BY key LIMIT ?4";

pub const CHANGES: &str = "SELECT \
     l.version, l.created, l.last_update, l.deleted, m.device, c.device, l.lives, l.writers, l.made_at, \
     l.claimed_at, l.row_base, l.base\
     , l.tbl, l.key FROM rollcall_ledger l \
     JOIN rollcall_writer m ON m.id = l.made_by JOIN rollcall_writer c ON c.id = l.changed_by \
     WHERE l.owner = ?1 AND (l.version, l.tbl, l.key) > (?2, ?3, ?4) AND l.version <= ?5 \
     ORDER BY l.version, l.tbl, l.key";

/// What the engine makes of the bench schema.
pub const PUT: &str = "INSERT INTO \"notes\" (\"_owner\", \"id\", \"title\", \"body\", \"done\", \"position\", \
     \"price\", \"due\", \"made\") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) \
     ON CONFLICT (\"_owner\", \"id\") DO UPDATE SET \"title\" = excluded.\"title\", \"body\" = excluded.\"body\", \
     \"done\" = excluded.\"done\", \"position\" = excluded.\"position\", \"price\" = excluded.\"price\", \
     \"due\" = excluded.\"due\", \"made\" = excluded.\"made\"";

pub const VALUES: &str = "SELECT \"id\", \"title\", \"body\", \"done\", \"position\", \"price\", \"due\", \"made\" \
     FROM \"notes\" WHERE \"_owner\" = ?1 AND \"id\" = ?2";
