"""What is learned: the state, and the step that folds a batch into it. It reads no clock."""
