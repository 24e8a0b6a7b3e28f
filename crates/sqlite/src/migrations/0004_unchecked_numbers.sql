-- In what is written with every row and every batch, the numbers of owners, tables and devices are no foreign keys
-- any more: SQLite looked each of them up, four for one entry of the ledger. The transaction that writes a number has
-- just read or made it, and no number is ever deleted.
--
-- SQLite's documentation of ALTER TABLE gives this way of taking a constraint off. The entries stay where they are,
-- so a large ledger takes no longer than a small one.

PRAGMA writable_schema = ON;

UPDATE sqlite_schema
SET sql = replace(replace(replace(sql, ' REFERENCES rollcall_owner (id)', ''),
  ' REFERENCES rollcall_table (id)', ''), ' REFERENCES rollcall_writer (id)', '')
WHERE type = 'table' AND name IN ('rollcall_ledger', 'rollcall_digest', 'rollcall_day');

-- Reads the schema again. A program that has the file open goes on looking the numbers up, which does no harm.
PRAGMA writable_schema = RESET;
