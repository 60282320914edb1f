"""The child: builds a network from an architecture, trains it, and writes one result."""
