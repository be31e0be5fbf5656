"""What a transformers model is to this package: its layers, its forward calls and the positions of their tokens."""
