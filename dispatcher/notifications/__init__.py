"""Notifications: who learns of which change, by e-mail and operational webhooks."""
