"""HTTP of the gateway: routes, access control, admission and errors."""
