"""Layers around the attention: plain functions of their weights, each with its reference in the same file."""
