"""Training: the optimizer, the time limit, and what a run needs beside BasicSR's loop."""
