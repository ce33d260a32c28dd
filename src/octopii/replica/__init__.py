"""One node of a cluster without threads, sockets or clocks: log, Raft, snapshots, sessions and the user's machine."""
