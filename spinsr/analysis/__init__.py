"""What a network learned: its superpixels, drawn and measured."""
