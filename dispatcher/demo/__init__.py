"""A demonstration that needs nothing installed but the wheel: a broker, a tenant's endpoint, some events."""
