"""Other logs and clusters, driven as a user of theirs would, measured in the same run as ours."""
