"""What a training run needs beside BasicSR's loop."""
