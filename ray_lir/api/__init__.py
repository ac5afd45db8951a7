"""Request and response models of the service's HTTP API, and its client. Needs neither torch nor Ray."""
