"""Feedback dispatcher: a Kafka stream of message-delivery events in, reliable webhooks out."""

__version__ = "0.2.0"
