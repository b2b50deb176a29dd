"""Rows with named columns: what they are, and the formats in which they are sent."""
