-- Whether the user's address is known to be theirs, and the tokens that were mailed to it: SHA-256, and until when each
-- is good. A user has one of each kind at most.
ALTER TABLE rollcall_user ADD COLUMN verified_at INTEGER;
ALTER TABLE rollcall_user ADD COLUMN reset_hash BLOB;
ALTER TABLE rollcall_user ADD COLUMN reset_until INTEGER;
ALTER TABLE rollcall_user ADD COLUMN verify_hash BLOB;
ALTER TABLE rollcall_user ADD COLUMN verify_until INTEGER;
