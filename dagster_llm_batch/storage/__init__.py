"""Storage that outlives a process: the ledger in SQL, and requests, raw results and labels as files."""
