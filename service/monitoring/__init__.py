"""What a model shows of itself."""
