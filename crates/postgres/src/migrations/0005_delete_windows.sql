-- How much each device has deleted of a table lately: a guard looks at it. began: when the count began, by the server's
-- clock; version, live_rows: what the owner and the table were then; deletes: how many of these rows are gone since.
CREATE TABLE rollcall_delete_window (
  owner     UUID    NOT NULL,
  device    UUID    NOT NULL,
  tbl       INTEGER NOT NULL,
  began     BIGINT  NOT NULL,
  version   BIGINT  NOT NULL,
  live_rows BIGINT  NOT NULL,
  deletes   BIGINT  NOT NULL,
  PRIMARY KEY (owner, device, tbl)
);
