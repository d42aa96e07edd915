"""The torch-free side: everything between an artifact and a picture."""
