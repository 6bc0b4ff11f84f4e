"""Files of the field's benchmarks, read as they are published, and names that their scorers look for."""
