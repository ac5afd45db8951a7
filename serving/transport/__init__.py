"""How the gateway calls its workers: through Ray Serve or over a Unix socket, with or without hedging."""
