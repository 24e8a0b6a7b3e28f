-- What a device said of the change that made a row's present state: so that a late copy of a request is told from the
-- device's next edit. claimed_at: the time that it gave, by its own clock; row_base: `_base`; base: `base`.
-- made_at: when the change was really made, where last_update had to be later than that.
ALTER TABLE rollcall_ledger ADD COLUMN made_at INTEGER;
ALTER TABLE rollcall_ledger ADD COLUMN claimed_at INTEGER;
ALTER TABLE rollcall_ledger ADD COLUMN row_base INTEGER;
ALTER TABLE rollcall_ledger ADD COLUMN base INTEGER;

ALTER TABLE rollcall_history ADD COLUMN made_at INTEGER;
ALTER TABLE rollcall_history ADD COLUMN claimed_at INTEGER;

-- The true time of the stored side, where it is not stored_at.
ALTER TABLE rollcall_conflict ADD COLUMN stored_made_at INTEGER;

-- Rows that were made up to this version may have been shown to devices ahead of their cursors.
ALTER TABLE rollcall_owner ADD COLUMN shown_ahead INTEGER NOT NULL DEFAULT 0;
