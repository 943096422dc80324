"""How much may pass in a time."""
