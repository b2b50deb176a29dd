"""Sources of labelled examples."""
