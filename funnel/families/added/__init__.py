"""Families that a user adds, among the others: how they answer, learn and are frozen."""
