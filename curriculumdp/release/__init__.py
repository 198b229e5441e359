"""What may leave a run: the release folder, its certificate, and the code that checks them."""
