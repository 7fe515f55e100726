"""The mechanism of the direct rules: cut at every tap, and send the error to each."""
