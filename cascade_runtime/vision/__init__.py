"""What the models see: typed feature packets (`features`), the gate (`gate`), the event branch and the dense tower."""
