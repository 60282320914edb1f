"""The operator: it keeps one controller pod running for each experiment and tells people how things stand.

Read it in this order:

- ``plan``: from what is to what should be; pure, and the place where every decision is made.
- ``conditions``: what the status says and which events tell it; pure.
- ``builders``: the objects that we make; pure.
- ``observed``: what we know of an experiment and of its pods, as plain values.
- ``reconciler``: looks, plans, acts, writes the status once.
- ``intake``, ``kept``, ``connection``: the door for what the API server sends, and how kopf is put behind it.
- ``cache``, ``workqueue``, ``resync``: how changes reach the reconciler, and what mends a lost watch.
- ``handlers``: what we ask kopf for, as a table of contents.
- ``main``: settings, logs, health, and everything started.
"""
