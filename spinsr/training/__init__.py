"""What a training run needs beside BasicSR's loop: options, loaders, checkpoints, optimizers, processes."""
