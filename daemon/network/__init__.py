"""Talking to peers: the Kademlia DHT on UDP, encrypted sessions on TCP, one port number for both."""
