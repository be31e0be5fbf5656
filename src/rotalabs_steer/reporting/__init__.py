"""The results of tuning as figures and as one HTML page."""
