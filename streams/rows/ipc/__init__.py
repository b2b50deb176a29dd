"""Arrow IPC streams: their metadata is checked before anything is decoded."""
