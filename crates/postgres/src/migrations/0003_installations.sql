-- Installations that name themselves, and how far their counters have come: one that comes with a lower counter is a
-- copy of an older state of it. `device` is what the ledger knows it by, `token_device` the device of its token.
CREATE TABLE rollcall_installation (
  owner        UUID   NOT NULL,
  device       UUID   NOT NULL,
  user_id      UUID   NOT NULL,
  token_device UUID   NOT NULL,
  counter      BIGINT NOT NULL,
  seen_at      BIGINT NOT NULL,
  PRIMARY KEY (owner, device)
) WITH (fillfactor = 50); -- each sync updates one in place
