"""Models that others made: found out what they are, read, tried on examples, and released through the same gates."""
