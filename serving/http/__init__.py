"""The HTTP side of the gateway: routes, access, admission, errors."""
