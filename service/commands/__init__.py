"""What the command line runs beside `serve`."""
