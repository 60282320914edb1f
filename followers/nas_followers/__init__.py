"""Followers: each reads the log of a search as it grows, and hands what it says over to somebody else's program.

A follower reads the bucket and writes nothing of a search: its only objects there are its own bookmarks. It has no
access to the cluster. Nothing imports this package, so that no search can come to depend on it.
"""
