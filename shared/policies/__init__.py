"""The guard's policies in the database: versions, which one counts, the stop switch, replays."""
