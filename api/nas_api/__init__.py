"""The contract everyone shares: the resource, architectures, results, names, labels and object keys.

Which file answers which question:

- ``experiment``: what a user may write in a NASExperiment, and what its status says.
- ``search_space``: which decisions a space asks for, and how choices become an architecture and back.
- ``architecture``: one sampled network as canonical JSON with a stable hash.
- ``child``: what a trainer is told, what it answers, and with which exit code it ends.
- ``child_job``: the Kubernetes Job that trains one launch (pure builder).
- ``handover``: what goes with a trained network: vocabulary, preprocessing, where it comes from.
- ``names``: every label, object name and storage key.
- ``reasons``: every condition type and reason, with its cure.
- ``crd``: the CustomResourceDefinition generated from ``experiment``.
"""

__version__ = "0.1.0"
