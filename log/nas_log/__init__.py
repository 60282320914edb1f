"""The log of a search: its records, the format of its objects, and its one reader. Knows no policy and no cluster."""
