"""Networks in use: loaded by name, run on images, in tiles, over folders."""
