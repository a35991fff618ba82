"""Notifies contacts and the operator of changes, by e-mail and operational webhooks."""
