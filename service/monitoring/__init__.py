"""How a model is observed: status, statistics, history, metrics, pictures, notification."""
