"""The statistics of inputs in compiled loops, for models whose step is compiled."""
