"""The formats of request bodies, a file each, and the table of them."""
