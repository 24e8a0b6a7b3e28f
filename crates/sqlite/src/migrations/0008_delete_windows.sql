-- How much each device has deleted of a table lately: a guard looks at it. began: when the count began, by the server's
-- clock; version, live_rows: what the owner and the table were then; deletes: how many of these rows are gone since.
CREATE TABLE rollcall_delete_window (
  owner     INTEGER NOT NULL,
  device    BLOB    NOT NULL,
  tbl       INTEGER NOT NULL,
  began     INTEGER NOT NULL,
  version   INTEGER NOT NULL,
  live_rows INTEGER NOT NULL,
  deletes   INTEGER NOT NULL,
  PRIMARY KEY (owner, device, tbl)
) STRICT, WITHOUT ROWID;
