"""Measurements of discovery: over real sockets beside hivemind, and on virtual time beside the stock kademlia."""
