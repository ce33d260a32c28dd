"""A topic-based write-ahead log: the durable base of everything else in this package."""
