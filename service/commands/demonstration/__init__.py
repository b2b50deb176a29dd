"""The demonstration of `funnel demo`: what it does, shows and reports."""
