-- The last day whose versions are dated (rollcall_day), as days since 1970: what locks the owner's row returns it, and a
-- statement that writes cannot look into another table on every kind of cluster. NULL is not known.
ALTER TABLE rollcall_owner ADD COLUMN dated BIGINT;
