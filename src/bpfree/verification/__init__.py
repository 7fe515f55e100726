"""An attachment checks itself: the laws that hold for every rule and model, tried on the model at hand."""
