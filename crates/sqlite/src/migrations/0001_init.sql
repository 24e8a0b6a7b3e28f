-- What rollcall keeps beside the application's own tables. Integers stand in for owners, tables and
-- devices, since the ledger names all three in every entry.

CREATE TABLE rollcall_meta (
  name  TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- epoch: raised by every restore from backup. start: the fences of each start of a server begin there.
-- migrations: how many of these files have run.
INSERT INTO rollcall_meta (name, value) VALUES ('epoch', 0), ('start', 0), ('migrations', 0);

CREATE TABLE rollcall_owner (
  id      INTEGER PRIMARY KEY,
  owner   BLOB    NOT NULL UNIQUE,
  version INTEGER NOT NULL,
  horizon INTEGER NOT NULL,
  live_rows  INTEGER NOT NULL,
  live_bytes INTEGER NOT NULL,
  seed       BLOB    NOT NULL
) STRICT;

CREATE TABLE rollcall_table (
  id   INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE
) STRICT;

-- Devices that ever wrote.
CREATE TABLE rollcall_writer (
  id     INTEGER PRIMARY KEY,
  device BLOB NOT NULL UNIQUE
) STRICT;

-- One small entry for each row, alive or tombstone: clustered by key, so that it is the manifest.
-- version is NULL where another program changed the row and nobody has numbered the change yet.
CREATE TABLE rollcall_ledger (
  owner       INTEGER NOT NULL REFERENCES rollcall_owner (id),
  tbl         INTEGER NOT NULL REFERENCES rollcall_table (id),
  key         BLOB    NOT NULL,
  version     INTEGER,
  created     INTEGER NOT NULL,
  last_update INTEGER NOT NULL,
  deleted     INTEGER NOT NULL CHECK (deleted IN (0, 1)),
  made_by     INTEGER NOT NULL REFERENCES rollcall_writer (id),
  changed_by  INTEGER NOT NULL REFERENCES rollcall_writer (id),
  lives       BLOB, -- earlier lives: made and deleted, 8 bytes each, big-endian
  writers     BLOB, -- other devices that wrote it, 16 bytes each
  PRIMARY KEY (owner, tbl, key)
) STRICT, WITHOUT ROWID;

-- The change feed reads in this order.
CREATE INDEX rollcall_ledger_version ON rollcall_ledger (owner, version);

-- A purge looks for tombstones alone.
CREATE INDEX rollcall_ledger_tombstones ON rollcall_ledger (owner, version) WHERE deleted = 1;

-- What a table holds: a count and a sum of hashes, kept in the transaction that changes it.
CREATE TABLE rollcall_digest (
  owner     INTEGER NOT NULL REFERENCES rollcall_owner (id),
  tbl       INTEGER NOT NULL REFERENCES rollcall_table (id),
  live_rows INTEGER NOT NULL,
  root      INTEGER NOT NULL,
  PRIMARY KEY (owner, tbl)
) STRICT, WITHOUT ROWID;

-- The version that an owner had before the first write of a day: how old a version is.
CREATE TABLE rollcall_day (
  owner   INTEGER NOT NULL REFERENCES rollcall_owner (id),
  day     INTEGER NOT NULL,
  version INTEGER NOT NULL,
  PRIMARY KEY (owner, day)
) STRICT, WITHOUT ROWID;

-- States that were replaced, a few of each row: the common ancestors of conflicts.
CREATE TABLE rollcall_history (
  owner       INTEGER NOT NULL REFERENCES rollcall_owner (id),
  tbl         INTEGER NOT NULL REFERENCES rollcall_table (id),
  key         BLOB    NOT NULL,
  version     INTEGER NOT NULL,
  last_update INTEGER NOT NULL,
  changed_by  BLOB    NOT NULL,
  columns     TEXT    NOT NULL,
  PRIMARY KEY (owner, tbl, key, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE rollcall_conflict (
  owner       INTEGER NOT NULL REFERENCES rollcall_owner (id),
  id          BLOB    NOT NULL,
  at          INTEGER NOT NULL,
  tbl         INTEGER NOT NULL REFERENCES rollcall_table (id),
  key         BLOB    NOT NULL,
  policy      TEXT    NOT NULL,
  resolution  TEXT    NOT NULL,
  base        TEXT,
  stored      TEXT,
  stored_at   INTEGER NOT NULL,
  stored_by   BLOB    NOT NULL,
  incoming    TEXT,
  incoming_at INTEGER NOT NULL,
  incoming_by BLOB    NOT NULL,
  restored_at INTEGER,
  PRIMARY KEY (owner, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX rollcall_conflict_at ON rollcall_conflict (owner, at);

-- Answers under idempotency keys, for devices that did not get them.
CREATE TABLE rollcall_answer (
  owner     INTEGER NOT NULL REFERENCES rollcall_owner (id),
  device    BLOB    NOT NULL,
  key       TEXT    NOT NULL,
  at        INTEGER NOT NULL,
  version   INTEGER NOT NULL,
  body_hash BLOB    NOT NULL,
  body      BLOB    NOT NULL,
  PRIMARY KEY (owner, device, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX rollcall_answer_at ON rollcall_answer (owner, device, at, version);

-- Up to where each device has seen everything: a purge waits for those that live.
CREATE TABLE rollcall_ack (
  owner   INTEGER NOT NULL REFERENCES rollcall_owner (id),
  device  BLOB    NOT NULL,
  version INTEGER NOT NULL,
  at      INTEGER NOT NULL,
  PRIMARY KEY (owner, device)
) STRICT, WITHOUT ROWID;
