"""The learners of the service and their peers on one stream, side by side."""
