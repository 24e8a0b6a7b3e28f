-- Users and devices. Ids are the 16 bytes of a UUID, times milliseconds since 1970 (UTC).

CREATE TABLE rollcall_user (
  id            BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
  email         TEXT    NOT NULL UNIQUE,      -- lower case
  password_hash TEXT    NOT NULL,             -- PHC string
  owner         BLOB    NOT NULL CHECK (length(owner) = 16),
  created_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE rollcall_device (
  id            BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
  user          BLOB    NOT NULL REFERENCES rollcall_user (id) ON DELETE CASCADE,
  name          TEXT    NOT NULL,
  token_hash    BLOB    NOT NULL UNIQUE CHECK (length(token_hash) = 32),  -- SHA-256; the token is not kept
  created_at    INTEGER NOT NULL,
  expires_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Serves both the list of a user's devices, oldest first, and the cascade.
CREATE INDEX rollcall_device_of_user ON rollcall_device (user, created_at);
