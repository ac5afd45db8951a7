"""How an index is made and changed: build, update, compact, publish."""
