-- Whether the user's address is known to be theirs, and the tokens that were mailed to it: SHA-256, and until when each
-- is good. A user has one of each kind at most.
ALTER TABLE rollcall_user ADD COLUMN verified_at BIGINT;
ALTER TABLE rollcall_user ADD COLUMN reset_hash BYTEA;
ALTER TABLE rollcall_user ADD COLUMN reset_until BIGINT;
ALTER TABLE rollcall_user ADD COLUMN verify_hash BYTEA;
ALTER TABLE rollcall_user ADD COLUMN verify_until BIGINT;
