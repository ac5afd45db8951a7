"""`python -m serving --index DIR [--port 8000]`: starts the search service here and serves until it is interrupted."""

from .switches import set_switches

if __name__ == "__main__":
    set_switches()
    from .foreground import main  # Serve reads the switches when it is imported

    main()
