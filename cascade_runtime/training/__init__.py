"""Training of the bundled family."""
