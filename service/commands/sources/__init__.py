"""``funnel source``: the messages of brokers and files that grow, carried into a log."""
