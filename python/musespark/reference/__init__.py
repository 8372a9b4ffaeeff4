"""NumPy twins of the core, written to be read. They import numpy only; it never calls them."""
