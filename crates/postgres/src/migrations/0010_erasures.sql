-- Users who were erased: the tokens of their devices, SHA-256, which are refused as such until a day.
CREATE TABLE rollcall_gone (
  token_hash BYTEA NOT NULL PRIMARY KEY,
  until      BIGINT NOT NULL
);

-- Owners whose last user was erased, and whose rows are to go. since: when that was.
CREATE TABLE rollcall_erasure (
  owner UUID NOT NULL PRIMARY KEY,
  since BIGINT NOT NULL
);
