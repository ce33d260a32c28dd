"""Bytes to messages and back, between nodes and between clients and nodes, without a socket, a clock or a loop.

    frames        how messages lie in a stream: greeting, header, checksum, limits
    handshake     who is there and may they come in: the first exchange, and its rules
    codec         what a log entry holds and what a command is answered with
    requests      what clients ask, what nodes answer, what nodes say to each other beside Raft
    parts         answers that are more than a frame may hold
    peer_frames   all that nodes say to each other, as frames
    call          the client's side of a call: the machine that a program's client, a node and the simulator drive
    courier       under it: requests on their way, and the ones that will not be answered
    attempts      under it: calls, their numbers in a session, and what is certain of them
    links         under it: which node to talk to, and how long to wait before the next

A connection, from either side:

    handshake = Handshake(hello, judge, dialer=...)
    send(handshake.start())
    while handshake.peer is None and handshake.error is None:
        send(handshake.receive(read()))
    data = b""
    while True:
        for frame_type, payload in handshake.decoder.feed(data):     # first of all what came with the handshake
            ...                                                      # decode_request, decode_reply, decode_peer_frame
        data = read()

Every decoder takes any bytes whatever and returns a value within limits or raises a `WireError`, after which the
connection is to be closed. The formats are described for other programs in docs/wire-format.md.
"""
