"""What several ops share: dispatch, grids, caches, chunks, precision."""
