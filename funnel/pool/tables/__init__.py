"""A table of rows by key: sparse inputs that a pool learns by compaction."""
