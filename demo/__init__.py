"""The demonstration: a whole search on a real cluster, from sources to the best architecture."""
