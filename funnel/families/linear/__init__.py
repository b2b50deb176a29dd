"""Linear experts beyond those of the leading pool."""
