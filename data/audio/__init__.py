"""Sound: reading, resampling, log-mel frames."""
