"""Families that a user adds: they are imported by name, and tried before any data comes."""
