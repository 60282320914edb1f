"""The log of a search: its records, the format of its objects, and how to read it. Knows no policy and no cluster."""
