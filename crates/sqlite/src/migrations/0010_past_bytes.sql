-- What the past of an owner takes: tombstones, by number, and history, conflicts and kept answers, in bytes. Each write
-- keeps the sums. They have everything where past_version is the owner's version; elsewhere a purge counts what was
-- there before, and adds it.
ALTER TABLE rollcall_owner ADD COLUMN past_tombstones INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollcall_owner ADD COLUMN past_history INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollcall_owner ADD COLUMN past_conflicts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollcall_owner ADD COLUMN past_answers INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollcall_owner ADD COLUMN past_version INTEGER;

-- The oldest states of an owner. It ends in tbl and key, which are of the primary key.
CREATE INDEX rollcall_history_version ON rollcall_history (owner, version);
