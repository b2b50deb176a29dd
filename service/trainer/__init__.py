"""Moves a state along its log: reads, cuts, records, steps, keeps."""
