"""Data for super-resolution: MATLAB-exact bicubic, preparation of datasets, datasets, loaders."""
