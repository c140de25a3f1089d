"""Where files are, where numbers come from, where models are read from, and the cache they decode with."""
