"""The state that is learned, and the step that folds a batch into it, without a clock."""
