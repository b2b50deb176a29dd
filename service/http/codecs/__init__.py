"""The formats of request bodies, one module each, and the table of them."""
