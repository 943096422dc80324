"""The packet path between the TUN device and the network, behind one engine interface."""
