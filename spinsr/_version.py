"""The version of spinsr."""

__version__ = '1.0.0'
