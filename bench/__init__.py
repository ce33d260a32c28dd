"""The budget table: one file for each row, the bare loops that the budgets refer to, and the peers beside them."""
