"""A client of the service in Python, with and without asyncio."""
