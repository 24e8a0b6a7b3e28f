-- When and where a device was seen last: the time to the minute, the address as text. Written now and then.
ALTER TABLE rollcall_device ADD COLUMN seen_at INTEGER;
ALTER TABLE rollcall_device ADD COLUMN seen_from TEXT;
