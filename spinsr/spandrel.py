"""`spinsr.spandrel.install()` registers the networks in spandrel."""

from spinsr.export.spandrel import install  # noqa: F401
