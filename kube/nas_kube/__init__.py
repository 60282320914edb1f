"""A small raw client of the Kubernetes API: dictionaries in, dictionaries out, and a reflector.

Connection, TLS and credentials come from the official client's configuration; its generated models are left
aside, because they cost more time per object than the API server does.

Nothing is imported here: pure modules take ``nas_kube.resources`` without the client that comes with the rest.
"""
