"""The schema of named rows, and the encoding of rows into numbers and keys.

The schema is part of the model's state. Every change of it is a command in a cut, so the encoding
is a function of (schema, rows) alone: no clock, no random number, no order of a hash table.
"""
