-- What the past of an owner takes: tombstones, by number, and history, conflicts and kept answers, in bytes. Each write
-- keeps the sums. They have everything where past_version is the owner's version; elsewhere a purge counts what was
-- there before, and adds it. So an owner that a server of an earlier release writes for is counted again.
ALTER TABLE rollcall_owner ADD COLUMN past_tombstones BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rollcall_owner ADD COLUMN past_history BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rollcall_owner ADD COLUMN past_conflicts BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rollcall_owner ADD COLUMN past_answers BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rollcall_owner ADD COLUMN past_version BIGINT;

-- The oldest states of an owner.
CREATE INDEX rollcall_history_version ON rollcall_history (owner, version, tbl, key);
