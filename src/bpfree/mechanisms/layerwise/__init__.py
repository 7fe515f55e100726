"""The mechanism of the layerwise rules: backpropagation with other weights on the way back."""
