"""Recurrent cells on text: the datasets, the cell of an architecture, the language model made of it, its training."""
