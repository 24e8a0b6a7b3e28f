-- Installations that name themselves, and how far their counters have come: one that comes with a lower counter is a
-- copy of an older state of it. `device` is what the ledger knows it by, `token_device` the device of its token.
CREATE TABLE rollcall_installation (
  owner        INTEGER NOT NULL,
  device       BLOB    NOT NULL,
  user_id      BLOB    NOT NULL,
  token_device BLOB    NOT NULL,
  counter      INTEGER NOT NULL,
  seen_at      INTEGER NOT NULL,
  PRIMARY KEY (owner, device)
) STRICT, WITHOUT ROWID;
