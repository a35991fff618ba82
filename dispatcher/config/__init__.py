"""Configuration: settings, webhook files, secret references, units, and the schemas made from them."""
