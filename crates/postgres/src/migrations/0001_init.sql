-- What rollcall keeps beside the application's own tables. An owner's rows lead with the owner in every key, so
-- that the tables can be sharded by it as they stand; the tables without an owner are few and small, and every
-- shard may have a copy. Ids are UUIDs, times milliseconds since 1970 (UTC), if nothing else is said.

-- epoch: raised by every restore from backup. migrations: how many of these files have run. oldest: a release
-- that knows fewer of them can no longer work with the database.
CREATE TABLE rollcall_meta (
  name  TEXT   PRIMARY KEY,
  value BIGINT NOT NULL
);

INSERT INTO rollcall_meta (name, value) VALUES ('epoch', 0), ('migrations', 0), ('oldest', 1);

CREATE TABLE rollcall_table (
  id   INTEGER PRIMARY KEY,
  name TEXT    NOT NULL UNIQUE
);

-- What rollcall declared; names compare whatever their case.
CREATE TABLE rollcall_column (
  tbl      TEXT    NOT NULL,
  name     TEXT    NOT NULL,
  type     TEXT    NOT NULL,
  required BOOLEAN NOT NULL,
  PRIMARY KEY (tbl, name)
);

CREATE TABLE rollcall_user (
  id            UUID   PRIMARY KEY,
  email         TEXT   NOT NULL UNIQUE, -- lower case
  password_hash TEXT   NOT NULL,        -- PHC string
  owner         UUID   NOT NULL,
  created_at    BIGINT NOT NULL
);

CREATE TABLE rollcall_device (
  id         UUID   PRIMARY KEY,
  user_id    UUID   NOT NULL REFERENCES rollcall_user (id) ON DELETE CASCADE,
  name       TEXT   NOT NULL,
  token_hash BYTEA  NOT NULL UNIQUE, -- SHA-256; the token is not kept
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL
);

-- Serves both the list of a user's devices, oldest first, and the cascade.
CREATE INDEX rollcall_device_of_user ON rollcall_device (user_id, created_at);

-- One row an owner: whoever writes for it locks this row first. The lease of the sync lock stands here too:
-- lease_until is NULL once the lease was given back, and holder once it was broken.
-- written: which transaction raised the version last, so that one whose end was not heard of can be found out.
CREATE TABLE rollcall_owner (
  owner       UUID   PRIMARY KEY,
  version     BIGINT NOT NULL,
  horizon     BIGINT NOT NULL,
  live_rows   BIGINT NOT NULL,
  live_bytes  BIGINT NOT NULL,
  seed        BYTEA  NOT NULL,
  written     UUID,
  fence       BIGINT NOT NULL DEFAULT 0,
  holder      UUID,
  holder_name TEXT   NOT NULL DEFAULT '',
  lease_since BIGINT NOT NULL DEFAULT 0,
  lease_until BIGINT
) WITH (fillfactor = 50); -- every write updates it in place

-- One small entry for each row, alive or tombstone.
CREATE TABLE rollcall_ledger (
  owner       UUID    NOT NULL,
  tbl         INTEGER NOT NULL,
  key         UUID    NOT NULL,
  version     BIGINT,
  created     BIGINT  NOT NULL,
  last_update BIGINT  NOT NULL,
  deleted     BOOLEAN NOT NULL,
  made_by     UUID    NOT NULL,
  changed_by  UUID    NOT NULL,
  lives       BYTEA, -- earlier lives: made and deleted, 8 bytes each, big-endian
  writers     BYTEA, -- other devices that wrote it, 16 bytes each
  PRIMARY KEY (owner, tbl, key)
);

-- The change feed reads in this order.
CREATE INDEX rollcall_ledger_version ON rollcall_ledger (owner, version, tbl, key);

-- A purge looks for tombstones alone.
CREATE INDEX rollcall_ledger_tombstones ON rollcall_ledger (owner, version) WHERE deleted;

-- What a table holds: a count and a sum of hashes, kept in the transaction that changes it.
CREATE TABLE rollcall_digest (
  owner     UUID    NOT NULL,
  tbl       INTEGER NOT NULL,
  live_rows BIGINT  NOT NULL,
  root      BIGINT  NOT NULL,
  PRIMARY KEY (owner, tbl)
);

-- The version that an owner had before the first write of a day: how old a version is.
CREATE TABLE rollcall_day (
  owner   UUID   NOT NULL,
  day     BIGINT NOT NULL,
  version BIGINT NOT NULL,
  PRIMARY KEY (owner, day)
);

-- States that were replaced, a few of each row: the common ancestors of conflicts.
CREATE TABLE rollcall_history (
  owner       UUID    NOT NULL,
  tbl         INTEGER NOT NULL,
  key         UUID    NOT NULL,
  version     BIGINT  NOT NULL,
  last_update BIGINT  NOT NULL,
  changed_by  UUID    NOT NULL,
  columns     TEXT    NOT NULL,
  PRIMARY KEY (owner, tbl, key, version)
);

CREATE TABLE rollcall_conflict (
  owner       UUID    NOT NULL,
  id          UUID    NOT NULL,
  at          BIGINT  NOT NULL,
  tbl         INTEGER NOT NULL,
  key         UUID    NOT NULL,
  policy      TEXT    NOT NULL,
  resolution  TEXT    NOT NULL,
  base        TEXT,
  stored      TEXT,
  stored_at   BIGINT  NOT NULL,
  stored_by   UUID    NOT NULL,
  incoming    TEXT,
  incoming_at BIGINT  NOT NULL,
  incoming_by UUID    NOT NULL,
  restored_at BIGINT,
  PRIMARY KEY (owner, id)
);

CREATE INDEX rollcall_conflict_at ON rollcall_conflict (owner, at, id);

-- Answers under idempotency keys, for devices that did not get them.
CREATE TABLE rollcall_answer (
  owner     UUID   NOT NULL,
  device    UUID   NOT NULL,
  key       TEXT   NOT NULL,
  at        BIGINT NOT NULL,
  version   BIGINT NOT NULL,
  body_hash BYTEA  NOT NULL,
  body      BYTEA  NOT NULL,
  PRIMARY KEY (owner, device, key)
);

CREATE INDEX rollcall_answer_at ON rollcall_answer (owner, device, at, version);

-- Up to where each device has seen everything: a purge waits for those that live.
CREATE TABLE rollcall_ack (
  owner   UUID   NOT NULL,
  device  UUID   NOT NULL,
  version BIGINT NOT NULL,
  at      BIGINT NOT NULL,
  PRIMARY KEY (owner, device)
);
