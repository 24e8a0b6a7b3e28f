-- Who may work with an owner's rows. role: 1 reads, 2 writes too, 3 decides who is a member too. since: the version at
-- which it last changed what the member may read.
CREATE TABLE rollcall_member (
  owner     UUID   NOT NULL,
  user_id   UUID   NOT NULL,
  role      BIGINT NOT NULL,
  since     BIGINT NOT NULL,
  name      TEXT   NOT NULL,
  joined_at BIGINT NOT NULL,
  PRIMARY KEY (owner, user_id)
);

-- Whether anybody else manages an owner, and who joined first.
CREATE INDEX rollcall_member_of_role ON rollcall_member (owner, role, joined_at, user_id);

-- Offers to become a member. code: SHA-256; the code itself is not kept.
CREATE TABLE rollcall_invitation (
  owner      UUID   NOT NULL,
  id         UUID   NOT NULL,
  code       BYTEA  NOT NULL,
  role       BIGINT NOT NULL,
  made_by    UUID   NOT NULL,
  made_at    BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  uses_left  BIGINT NOT NULL,
  PRIMARY KEY (owner, id)
);

-- members_at: the version at which members, their roles or who may read last changed; 0 is never, and then the user
-- whom the owner was made for manages it and is its only member.
ALTER TABLE rollcall_owner ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE rollcall_owner ADD COLUMN members_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rollcall_owner ADD COLUMN public BOOLEAN NOT NULL DEFAULT false;

-- erased_at: since when the owner is erased, and its rows are to go; NULL if it is not.
ALTER TABLE rollcall_owner ADD COLUMN erased_at BIGINT;
UPDATE rollcall_owner SET erased_at = e.since FROM rollcall_erasure AS e WHERE e.owner = rollcall_owner.owner;
DROP TABLE rollcall_erasure;
CREATE INDEX rollcall_owner_erased ON rollcall_owner (owner) WHERE erased_at IS NOT NULL;

-- What belongs to one user lies together: users, devices and the list of a user's owners lead with the user. Servers of
-- the release before find users by email and devices by id or token; the constraints for that stay until the tables are
-- distributed, since a cluster cannot hold them.
ALTER TABLE rollcall_device DROP CONSTRAINT rollcall_device_pkey;
ALTER TABLE rollcall_device ADD PRIMARY KEY (user_id, id);
ALTER TABLE rollcall_device ADD CONSTRAINT rollcall_device_id_key UNIQUE (id);

CREATE TABLE rollcall_membership (
  user_id UUID NOT NULL,
  owner   UUID NOT NULL,
  PRIMARY KEY (user_id, owner)
);

-- Finds a user or an owner by something that is one's own: kind 1 an email, 2 the id of a device, 3 a token, 4 the code
-- of an invitation. name: SHA-256 of a byte with the kind, and of that. A look-up is written before what it leads to, and
-- grants nothing. claimed_at: since when it waits for what it leads to; NULL once that is there. expires_at: from when
-- on it is of no more use; NULL is never.
CREATE TABLE rollcall_lookup (
  name       BYTEA    PRIMARY KEY,
  kind       SMALLINT NOT NULL,
  id         UUID   NOT NULL,
  claimed_at BIGINT,
  expires_at BIGINT
);

CREATE INDEX rollcall_lookup_expires ON rollcall_lookup (expires_at) WHERE expires_at IS NOT NULL;

-- home: whether the owner was made with the account. NULL, from a server of the release before: if it has the user's id.
ALTER TABLE rollcall_user ADD COLUMN home BOOLEAN;

-- Of the users of one owner the first one manages it. The others were added to it, and may write.
UPDATE rollcall_user SET home = NOT EXISTS (
  SELECT 1 FROM rollcall_user AS first WHERE first.owner = rollcall_user.owner
    AND (first.created_at, first.id) < (rollcall_user.created_at, rollcall_user.id));
INSERT INTO rollcall_member (owner, user_id, role, since, name, joined_at)
  SELECT owner, id, CASE WHEN home THEN 3 ELSE 2 END, 0, '', created_at FROM rollcall_user;

-- The members of an owner that several share are to be read, so such an owner is made if nothing was written for it.
INSERT INTO rollcall_owner (owner, version, horizon, live_rows, live_bytes, seed, fence, past_version)
  SELECT u.owner, (m.value << 40) | 1, (m.value << 40) | 1, 0, 0, uuid_send(gen_random_uuid()), m.value << 32,
    (m.value << 40) | 1
  FROM (SELECT DISTINCT owner FROM rollcall_user WHERE NOT home) AS u JOIN rollcall_meta AS m ON m.name = 'epoch'
  ON CONFLICT (owner) DO NOTHING;
UPDATE rollcall_owner SET members_at = version WHERE owner IN (SELECT owner FROM rollcall_user WHERE NOT home);

INSERT INTO rollcall_membership (user_id, owner) SELECT id, owner FROM rollcall_user;
INSERT INTO rollcall_lookup (name, kind, id)
  SELECT sha256('\x01'::bytea || convert_to(email, 'UTF8')), 1, id FROM rollcall_user;
INSERT INTO rollcall_lookup (name, kind, id)
  SELECT sha256('\x02'::bytea || uuid_send(id)), 2, user_id FROM rollcall_device;
INSERT INTO rollcall_lookup (name, kind, id)
  SELECT sha256('\x03'::bytea || token_hash), 3, user_id FROM rollcall_device;
