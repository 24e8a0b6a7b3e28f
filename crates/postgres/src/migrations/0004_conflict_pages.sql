-- An index for each question that can be put about conflicts: those of one table, and those of one key.
CREATE INDEX rollcall_conflict_of_table ON rollcall_conflict (owner, tbl, at, id);
CREATE INDEX rollcall_conflict_of_key ON rollcall_conflict (owner, key, at, id);
