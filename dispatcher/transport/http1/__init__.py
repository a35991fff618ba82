"""The HTTP/1.1 client for this one job: POST, keep-alive, small answers, llhttp (`httptools`) as the parser."""

from dispatcher.transport.http1.client import Http1Transport

__all__ = ["Http1Transport"]
