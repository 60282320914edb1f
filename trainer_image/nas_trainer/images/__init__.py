"""Convolutional networks on images: the datasets, the network of an architecture, its training."""
