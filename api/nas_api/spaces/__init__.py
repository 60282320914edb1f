"""The search spaces, one module each: what a manifest says of it, its decisions, and its architectures.

Adding one is a module here, a line in ``nas_api.architecture`` and two in ``nas_api.search_space``.
"""
