"""Streams of rows that are made up, with the true probability of each label."""
