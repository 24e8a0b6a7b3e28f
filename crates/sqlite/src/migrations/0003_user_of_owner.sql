-- Who syncs an owner's rows: the console asks.
CREATE INDEX rollcall_user_of_owner ON rollcall_user (owner);
