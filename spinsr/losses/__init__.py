"""Loss classes for BasicSR's registry: only what BasicSR does not have."""
