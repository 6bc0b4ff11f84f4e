"""What tests share: models, cases, laws, oracles, planted faults.  No test file imports another; they import these."""
