"""The search side of scorers: `scorer.py` the interface, `maxsim.py` exact scores, `registry.py` the scorers by name."""
