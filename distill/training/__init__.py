"""One model on one device. Everything about speed is in this package."""
