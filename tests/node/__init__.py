"""Tests of nodes over real sockets."""
