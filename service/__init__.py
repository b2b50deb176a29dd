"""The service: a model that is the fold of a log through the Funnel update."""
