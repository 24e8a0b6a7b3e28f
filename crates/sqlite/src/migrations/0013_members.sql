-- Who may work with an owner's rows. role: 1 reads, 2 writes too, 3 decides who is a member too. since: the version at
-- which it last changed what the member may read. Owners and users are the 16 bytes of their ids: an owner may have a
-- member before anything is written for it.
CREATE TABLE rollcall_member (
  owner     BLOB    NOT NULL CHECK (length(owner) = 16),
  user_id   BLOB    NOT NULL CHECK (length(user_id) = 16),
  role      INTEGER NOT NULL,
  since     INTEGER NOT NULL,
  name      TEXT    NOT NULL,
  joined_at INTEGER NOT NULL,
  PRIMARY KEY (owner, user_id)
) STRICT, WITHOUT ROWID;

-- The owners of a user.
CREATE INDEX rollcall_member_of_user ON rollcall_member (user_id);
-- Whether anybody else manages an owner, and who joined first. It ends in user_id, which is of the primary key.
CREATE INDEX rollcall_member_of_role ON rollcall_member (owner, role, joined_at);

-- Offers to become a member. code: SHA-256; the code itself is not kept.
CREATE TABLE rollcall_invitation (
  owner      BLOB    NOT NULL CHECK (length(owner) = 16),
  id         BLOB    NOT NULL CHECK (length(id) = 16),
  code       BLOB    NOT NULL UNIQUE CHECK (length(code) = 32),
  role       INTEGER NOT NULL,
  made_by    BLOB    NOT NULL CHECK (length(made_by) = 16),
  made_at    INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  uses_left  INTEGER NOT NULL,
  PRIMARY KEY (owner, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX rollcall_invitation_expires ON rollcall_invitation (expires_at);

-- members_at: the version at which members, their roles or who may read last changed; 0 is never, and then the user
-- whom the owner was made for manages it and is its only member.
ALTER TABLE rollcall_owner ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE rollcall_owner ADD COLUMN members_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollcall_owner ADD COLUMN public INTEGER NOT NULL DEFAULT 0;

-- erased_at: since when the owner is erased, and its rows are to go; NULL if it is not.
ALTER TABLE rollcall_owner ADD COLUMN erased_at INTEGER;
UPDATE rollcall_owner SET erased_at = (SELECT e.since FROM rollcall_erasure AS e WHERE e.owner = rollcall_owner.owner);
DROP TABLE rollcall_erasure;
CREATE INDEX rollcall_owner_erased ON rollcall_owner (owner) WHERE erased_at IS NOT NULL;

-- home: whether the owner was made with the account.
ALTER TABLE rollcall_user ADD COLUMN home INTEGER NOT NULL DEFAULT 1;

-- Of the users of one owner the first one manages it. The others were added to it, and may write.
UPDATE rollcall_user SET home = 0 WHERE EXISTS (
  SELECT 1 FROM rollcall_user AS first WHERE first.owner = rollcall_user.owner
    AND (first.created_at, first.id) < (rollcall_user.created_at, rollcall_user.id));
INSERT INTO rollcall_member (owner, user_id, role, since, name, joined_at)
  SELECT owner, id, CASE home WHEN 1 THEN 3 ELSE 2 END, 0, '', created_at FROM rollcall_user;

-- The members of an owner that several share are to be read, so such an owner is made if nothing was written for it.
INSERT INTO rollcall_owner (owner, version, horizon, live_rows, live_bytes, seed, past_version)
  SELECT DISTINCT u.owner, (m.value << 40) | 1, (m.value << 40) | 1, 0, 0, randomblob(16), (m.value << 40) | 1
  FROM (SELECT DISTINCT owner FROM rollcall_user WHERE home = 0) AS u JOIN rollcall_meta AS m ON m.name = 'epoch'
  WHERE NOT EXISTS (SELECT 1 FROM rollcall_owner AS o WHERE o.owner = u.owner);
UPDATE rollcall_owner SET members_at = version WHERE owner IN (SELECT owner FROM rollcall_user WHERE home = 0);
