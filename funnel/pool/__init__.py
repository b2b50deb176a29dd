"""A pool of experts, mixed by Fixed Share."""
