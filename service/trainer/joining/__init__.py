"""Labels meet their questions, which were asked before or come later."""
