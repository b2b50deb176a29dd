"""The way in and out over HTTP: nothing here knows the log or torch."""
