"""Results of tuning as pictures and as one HTML page."""
