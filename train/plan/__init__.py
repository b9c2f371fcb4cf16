"""What a compiled train step needs of its devices."""
