"""The service's HTTP messages and the client that speaks them; needs neither torch nor Ray."""
