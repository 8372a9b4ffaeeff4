"""NumPy twins of the core, written to be read. They import numpy only and are never called by it."""
