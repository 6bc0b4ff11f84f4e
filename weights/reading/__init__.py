"""Safe reading of other people's files: headers, entries, folders."""
