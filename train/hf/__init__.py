"""Model folders in Hugging Face format: found, read, written, compared and merged."""
