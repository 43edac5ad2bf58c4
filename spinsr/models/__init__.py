"""Model classes for BasicSR's registry: only what its SRModel cannot do."""
