-- due_at: when something of an owner may first be old enough to be forgotten, ms since 1970; NULL if nothing that ages is
-- stored. Owners of before are due at once. A purge reads no others.
ALTER TABLE rollcall_owner ADD COLUMN due_at INTEGER DEFAULT 0;
CREATE INDEX rollcall_owner_due ON rollcall_owner (due_at, owner) WHERE due_at IS NOT NULL;
