"""ray_lir inside other libraries. Each module needs the package it is named after, and is imported only when it is used."""
