"""Serves HTTP on a port that strangers can reach: limits on time and connections, by port and by peer."""

from dispatcher.listener.peers import Networks, address_of, peer_of
from dispatcher.listener.port import Listener, limit_of_port
from dispatcher.listener.sockets import listen_refusal

__all__ = ["Listener", "Networks", "address_of", "limit_of_port", "listen_refusal", "peer_of"]
