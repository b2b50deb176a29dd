"""Forests: trees in tensors, and how one is grown."""
