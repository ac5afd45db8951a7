"""How the gateway calls its workers: through Ray, over a Unix socket, and with hedging."""
