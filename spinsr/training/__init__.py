"""What a training uses beside the network and its data."""
