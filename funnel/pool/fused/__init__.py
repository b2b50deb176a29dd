"""A step of linear experts in few compiled calls, where a CPU, numba and the shapes allow it."""
