"""Models, cases, laws, oracles and planted faults that tests share.  No test file imports another."""
