"""How a release is made: train, convert, quantize, evaluate, bundle, sign."""
