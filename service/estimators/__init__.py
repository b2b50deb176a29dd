"""Estimators: Funnel's models in scikit-learn's and river's contracts."""
