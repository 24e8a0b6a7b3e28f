-- Users who were erased: the tokens of their devices, SHA-256, which are refused as such until a day.
CREATE TABLE rollcall_gone (
  token_hash BLOB NOT NULL PRIMARY KEY,
  until      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Owners whose last user was erased, and whose rows are to go. since: when that was.
CREATE TABLE rollcall_erasure (
  owner BLOB NOT NULL PRIMARY KEY,
  since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
