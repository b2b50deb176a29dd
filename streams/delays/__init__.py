"""Labels that come later than their examples, to measure what that costs."""
