"""What every part uses: configuration, errors, logs, progress and parallel maps."""
