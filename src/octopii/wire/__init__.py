"""Bytes to messages and back, between nodes and between clients and nodes."""
