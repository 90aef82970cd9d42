"""Many machines as one: hosts that dial the head over one TLS WebSocket each, and what is said over it."""
