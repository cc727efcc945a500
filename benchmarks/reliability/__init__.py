"""Does it hold? Kills, hostile files, long runs, and every command that the documentation gives."""
