"""The version of spinsr."""

__version__ = '0.1.0'
